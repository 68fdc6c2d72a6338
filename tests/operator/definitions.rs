//! What the API server accepts as custom resources, and what a person reads when it does not.

use http::Request;
use kube::Api;
use kube::api::{Patch, PatchParams, PostParams};
use kube::core::DynamicObject;
use serde_json::{Value, json};
use tss_operator::crd::{SigningRequest, TssCluster};

use crate::server::{Namespace, cluster, connect, in_namespace, until};

const DRY: PostParams = PostParams { dry_run: true, field_manager: None };

fn request(spec: Value) -> Value {
    let mut all = json!({"clusterRef": {"name": "wallet"}});
    merge(&mut all, spec);
    json!({"apiVersion": "tss.network/v1alpha1", "kind": "SigningRequest", "metadata": {"name": "pay"}, "spec": all})
}

/// A merge patch (RFC 7386).
fn merge(into: &mut Value, from: Value) {
    match (into, from) {
        (Value::Object(into), Value::Object(from)) => {
            for (key, value) in from {
                if value.is_null() {
                    into.remove(&key);
                } else {
                    merge(into.entry(key).or_insert(Value::Null), value);
                }
            }
        }
        (into, from) => *into = from,
    }
}

fn with(mut object: Value, changes: Value) -> Value {
    merge(&mut object, changes);
    object
}

fn api_of(namespace: &Namespace, object: &Value) -> Api<DynamicObject> {
    let kind = match object["kind"].as_str().unwrap() {
        "TssCluster" => kube::api::ApiResource::erase::<TssCluster>(&()),
        _ => kube::api::ApiResource::erase::<SigningRequest>(&()),
    };
    namespace.dynamic(&kind)
}

/// What the API server would make of it.
async fn create(namespace: &Namespace, object: &Value) -> Result<DynamicObject, String> {
    let parsed: DynamicObject = serde_json::from_value(object.clone()).unwrap();
    api_of(namespace, object).create(&DRY, &parsed).await.map_err(message)
}

fn message(error: kube::Error) -> String {
    match error {
        kube::Error::Api(status) => status.message.clone(),
        other => panic!("{other}"),
    }
}

/// Every refusal that is not the expected one.
async fn assert_refused(namespace: &Namespace, cases: Vec<(Value, &str)>) {
    let mut wrong = Vec::new();
    for (object, expected) in cases {
        match create(namespace, &object).await {
            Err(message) if message.contains(expected) => {}
            other => wrong
                .push(format!("{object}\n  expected: {expected}\n  got: {:?}", other.map(|_| "accepted"))),
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[tokio::test]
async fn what_is_possible_is_accepted() {
    in_namespace(async |namespace| {
        let secrets = json!({"type": "ExistingSecrets", "existingSecrets": {"secrets": ["a", "b", "c"], "rosterConfigMap": "r"}});
        let everything = json!({"spec": {
            "protocol": "dkls23",
            "refresh": {"schedule": "*/5 3-4 * JAN,FEB 0", "olderThan": "2026-01-01T00:00:00Z"},
            "networkName": "main-net-1",
            "derivationPath": "m/44/60/0",
            "rabbitmq": {"uriSecret": {"name": "r", "key": "k"}, "port": 5671},
            "mongodb": {"uriSecret": {"name": "m", "key": "k"}, "port": 1, "database": "d_1"},
            "policy": {"configMap": "p", "key": "p.toml"},
            "manager": {"replicas": 3, "image": "registry:5000/m@sha256:0", "resources": {"limits": {"memory": "1Gi"}}},
            "signer": {
                "antiAffinity": "Required", "storage": {"size": "2Gi", "storageClassName": "fast"},
                "nodeSelector": {"kubernetes.io/os": "linux"}, "priorityClassName": "high",
                "tolerations": [{"key": "k", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 5}],
                "resources": {"requests": {"cpu": 1}},
            },
            "signingTimeoutSeconds": 5, "logLevel": "info,tss_signer=debug", "imagePullSecrets": [{"name": "pull"}],
        }});
        let hex = "ab".repeat(32);
        for object in [
            cluster("a", 2, 2),
            cluster(&"a".repeat(36), 15, 15),
            with(cluster("wallet", 2, 3), everything),
            with(cluster("wallet", 2, 3), json!({"spec": {"keySource": secrets}})),
            with(cluster("wallet", 2, 3), json!({"spec": {"keySource": {"type": "Generate"}, "derivationPath": "m"}})),
            request(json!({"message": "hello"})),
            request(json!({"message": "", "encoding": "utf8", "hash": "eip191"})),
            request(json!({"message": "00ff", "encoding": "hex", "hash": "keccak256", "derivationPath": "0/1", "deadlineSeconds": 5})),
            request(json!({"digest": hex, "ttlSecondsAfterFinished": 0, "notAfter": "2030-01-01T00:00:00Z"})),
            request(json!({"digest": format!("0x{hex}"), "approvals": [{"approver": hex, "signature": "0".repeat(128)}]})),
        ] {
            let created = create(namespace, &object).await;
            created.unwrap_or_else(|message| panic!("{object}\n{message}"));
        }
    })
    .await;
}

#[tokio::test]
async fn what_is_not_said_is_filled_in() {
    in_namespace(async |namespace| {
        let made = create(namespace, &cluster("wallet", 2, 3)).await.unwrap();
        for (field, expected) in [
            ("/spec/protocol", json!("dkls23")),
            ("/spec/keySource", json!({"type": "Generate"})),
            ("/spec/derivationPath", json!("0/1/2")),
            ("/spec/rabbitmq", json!({"port": 5672, "uriSecret": {"name": "rabbitmq", "key": "uri"}})),
            ("/spec/mongodb", json!({"port": 27017, "uriSecret": {"name": "mongodb", "key": "uri"}})),
            ("/spec/manager/replicas", json!(2)),
            ("/spec/signer/antiAffinity", json!("Preferred")),
            ("/spec/signer/storage/size", json!("1Gi")),
            ("/spec/signingTimeoutSeconds", json!(30)),
            ("/spec/logLevel", json!("info")),
        ] {
            assert_eq!(made.data.pointer(field), Some(&expected), "{field}");
        }
        let policy = json!({"spec": {"policy": {"configMap": "p"}}});
        let made = create(namespace, &with(cluster("wallet", 2, 3), policy)).await.unwrap();
        assert_eq!(made.data["spec"]["policy"]["key"], "policy.toml");
        let made = create(namespace, &request(json!({"message": "hello"}))).await.unwrap();
        assert_eq!(made.data["spec"]["deadlineSeconds"], 60);
    })
    .await;
}

#[tokio::test]
async fn an_impossible_cluster_is_refused_with_a_reason() {
    in_namespace(async |namespace| {
        let changed = |changes: Value| with(cluster("wallet", 2, 3), json!({"spec": changes}));
        let secrets = |count: usize| json!({"keySource": {"type": "ExistingSecrets", "existingSecrets": {
            "secrets": vec!["s"; count], "rosterConfigMap": "r"}}});
        let long_name = "the name becomes part of the names of Services: expected at most 36";
        assert_refused(namespace, vec![
            (cluster("wallet", 4, 3), "threshold: expected at most as many as there are signers"),
            (cluster("wallet", 1, 3), "spec.threshold: Invalid value: 1: spec.threshold in body should be greater than or equal to 2"),
            (cluster("wallet", 2, 16), "spec.signers in body should be less than or equal to 15"),
            (cluster(&"a".repeat(37), 2, 3), long_name),
            (cluster("1wallet", 2, 3), long_name),
            (cluster("my.wallet", 2, 3), long_name),
            (changed(secrets(2)), "expected the name of one Secret for each signer"),
            (changed(secrets(4)), "expected the name of one Secret for each signer"),
            (changed(json!({"keySource": {"type": "ExistingSecrets"}})), "existingSecrets: expected with the type ExistingSecrets, and only then"),
            (with(changed(secrets(3)), json!({"spec": {"keySource": {"type": "Generate"}}})), "existingSecrets: expected with the type ExistingSecrets, and only then"),
            (changed(json!({"protocol": "gg20"})), "Unsupported value: \"gg20\": supported values: \"dkls23\""),
            (changed(json!({"auth": null})), "spec.auth: Required value"),
            (changed(json!({"auth": {"type": "Password"}})), "Unsupported value: \"Password\""),
            (changed(json!({"rabbitmq": null})), "spec.rabbitmq: Required value"),
            (changed(json!({"mongodb": {"uriSecret": null}})), "spec.mongodb.uriSecret: Required value"),
            (changed(json!({"rabbitmq": {"port": 0}})), "spec.rabbitmq.port in body should be greater than or equal to 1"),
            (changed(json!({"mongodb": {"port": 65536}})), "spec.mongodb.port in body should be less than or equal to 65535"),
            (changed(json!({"mongodb": {"database": "a b"}})), "spec.mongodb.database in body should match"),
            (changed(json!({"networkName": "Main"})), "spec.networkName in body should match"),
            (changed(json!({"networkName": "a".repeat(64)})), "spec.networkName: Too long: may not be more than 63"),
            (changed(json!({"derivationPath": "m/44'/60'"})), "spec.derivationPath in body should match"),
            (changed(json!({"derivationPath": ""})), "spec.derivationPath in body should match"),
            (changed(json!({"manager": {"replicas": 0}})), "spec.manager.replicas in body should be greater than or equal to 1"),
            (changed(json!({"manager": {"replicas": 17}})), "spec.manager.replicas in body should be less than or equal to 16"),
            (changed(json!({"manager": {"image": ""}})), "spec.manager.image in body should be at least 1 chars long"),
            (changed(json!({"signer": {"antiAffinity": "Always"}})), "Unsupported value: \"Always\""),
            (changed(json!({"signer": {"storage": {"size": "much"}}})), "spec.signer.storage.size in body should match"),
            (changed(json!({"signingTimeoutSeconds": 0})), "spec.signingTimeoutSeconds in body should be greater than or equal to 1"),
            (changed(json!({"signingTimeoutSeconds": 3601})), "spec.signingTimeoutSeconds in body should be less than or equal to 3600"),
            (changed(json!({"refresh": {"schedule": "@daily"}})), "spec.refresh.schedule in body should match"),
            (changed(json!({"refresh": {"schedule": "0 3 * *"}})), "spec.refresh.schedule in body should match"),
            (changed(json!({"refresh": {"schedule": "0 0 3 * * 0"}})), "spec.refresh.schedule in body should match"),
            (changed(json!({"refresh": {"schedule": "0".repeat(101)}})), "spec.refresh.schedule: Too long: may not be more than 100"),
            (changed(json!({"refresh": {"olderThan": "yesterday"}})), "spec.refresh.olderThan in body must be of type date-time"),
            (changed(json!({"logLevel": "a\nb"})), "spec.logLevel in body should match"),
            (changed(json!({"imagePullSecrets": vec![json!({"name": "a"}); 17]})), "spec.imagePullSecrets: Too many: 17: must have at most 16 items"),
        ])
        .await;
    })
    .await;
}

#[tokio::test]
async fn an_impossible_request_is_refused_with_a_reason() {
    in_namespace(async |namespace| {
        let hex = "ab".repeat(32);
        let either = "expected either message or digest";
        let message_only = "encoding and hash: expected with message only";
        assert_refused(
            namespace,
            vec![
                (request(json!({})), either),
                (request(json!({"message": "hello", "digest": hex})), either),
                (request(json!({"digest": hex, "encoding": "hex"})), message_only),
                (request(json!({"digest": hex, "hash": "sha256"})), message_only),
                (
                    request(json!({"digest": "ab".repeat(31)})),
                    "spec.digest in body should be at least 64 chars long",
                ),
                (request(json!({"digest": "zz".repeat(32)})), "spec.digest in body should match"),
                (
                    request(json!({"message": "a".repeat(262_145)})),
                    "spec.message: Too long: may not be more than 262144",
                ),
                (
                    request(json!({"message": "m", "encoding": "rot13"})),
                    "Unsupported value: \"rot13\": supported values: \"utf8\", \"hex\", \"base64\"",
                ),
                (request(json!({"message": "m", "hash": "md5"})), "Unsupported value: \"md5\""),
                (
                    request(json!({"message": "m", "derivationPath": "0/1h"})),
                    "spec.derivationPath in body should match",
                ),
                (
                    request(json!({"message": "m", "deadlineSeconds": 0})),
                    "spec.deadlineSeconds in body should be greater than or equal to 1",
                ),
                (
                    request(json!({"message": "m", "deadlineSeconds": 86_401})),
                    "spec.deadlineSeconds in body should be less than or equal to 86400",
                ),
                (
                    request(json!({"message": "m", "ttlSecondsAfterFinished": -1})),
                    "spec.ttlSecondsAfterFinished in body should be greater than or equal to 0",
                ),
                (
                    request(json!({"message": "m", "notAfter": "tomorrow"})),
                    "spec.notAfter in body must be of type date-time",
                ),
                (
                    request(json!({"message": "m", "clusterRef": {"name": ""}})),
                    "spec.clusterRef.name in body should be at least 1 chars long",
                ),
                (
                    request(json!({"message": "m", "approvals": [{"approver": "me", "signature": "yes"}]})),
                    "spec.approvals[0].approver in body should be at least 64 chars long",
                ),
            ],
        )
        .await;
    })
    .await;
}

async fn patched(namespace: &Namespace, object: &Value, patch: Value) -> Result<DynamicObject, String> {
    let parameters = PatchParams { dry_run: true, ..PatchParams::default() };
    let name = object["metadata"]["name"].as_str().unwrap();
    api_of(namespace, object).patch(name, &parameters, &Patch::Merge(patch)).await.map_err(message)
}

#[tokio::test]
async fn what_would_mean_another_key_cannot_be_changed() {
    in_namespace(async |namespace| {
        let plain = namespace.apply(cluster("plain", 2, 3)).await;
        let named = with(cluster("named", 2, 3), json!({"spec": {"networkName": "net"}}));
        namespace.apply(named.clone()).await;
        let source = json!({"type": "ExistingSecrets", "existingSecrets": {"secrets": ["a", "b", "c"], "rosterConfigMap": "r"}});
        let existing = with(cluster("existing", 2, 3), json!({"spec": {"keySource": source}}));
        namespace.apply(existing.clone()).await;
        let plain = serde_json::to_value(plain).unwrap();
        let network = "networkName is immutable: it is part of what is signed";
        let key_source = "keySource is immutable: another source means another key";
        for (object, spec, expected) in [
            (&plain, json!({"keySource": source}), key_source),
            (&existing, json!({"keySource": {"existingSecrets": {"secrets": ["a", "c", "b"]}}}), key_source),
            (&existing, json!({"keySource": {"existingSecrets": {"rosterConfigMap": "other"}}}), key_source),
            (&existing, json!({"keySource": null}), key_source),
            (&plain, json!({"derivationPath": "0/1/3"}), "derivationPath is immutable: another path has another address"),
            (&plain, json!({"networkName": "net"}), network),
            (&named, json!({"networkName": "other"}), network),
            (&named, json!({"networkName": null}), network),
            (&plain, json!({"signer": {"storage": {"size": "2Gi"}}}), "storage is immutable: Kubernetes does not change the volumes of a StatefulSet"),
        ] {
            let refused = patched(namespace, object, json!({"spec": spec})).await.map(|_| "accepted").unwrap_err();
            assert!(refused.contains(expected), "{spec}: expected {expected}, got {refused}");
        }
        // Nor can there be fewer signers than it takes to make new shares, or than there are Secrets.
        let three = serde_json::to_value(namespace.apply(cluster("three", 3, 5)).await).unwrap();
        let few = "signers: expected at least as many as are needed to sign now, which the key's new shares are made of; with \
                   fewer, go there in two steps";
        let secrets = "expected the name of one Secret for each signer";
        for (object, spec, expected) in [
            (&three, json!({"signers": 2, "threshold": 2}), few),
            (&existing, json!({"signers": 4}), secrets),
            (&existing, json!({"signers": 2}), secrets),
        ] {
            let refused = patched(namespace, object, json!({"spec": spec})).await.map(|_| "accepted").unwrap_err();
            assert!(refused.contains(expected), "{spec}: expected {expected}, got {refused}");
        }
        // All else can: shares for other signers are of the same key.
        for (object, spec) in [
            (&plain, json!({"threshold": 3})),
            (&plain, json!({"signers": 4})),
            (&plain, json!({"signers": 2})),
            (&plain, json!({"threshold": 4, "signers": 7})),
            (&three, json!({"signers": 3, "threshold": 2})),
            (&existing, json!({"threshold": 3})),
            (&existing, json!({"refresh": {"olderThan": "2026-01-01T00:00:00Z"}})),
        ] {
            patched(namespace, object, json!({ "spec": spec })).await.unwrap();
        }
        let all = json!({"spec": {
            "rabbitmq": {"uriSecret": {"name": "other"}, "port": 1}, "mongodb": {"port": 2, "database": "d"}, "policy": {"configMap": "p"},
            "manager": {"replicas": 1, "image": "i"}, "signer": {"image": "i", "antiAffinity": "Required"},
            "logLevel": "debug", "signingTimeoutSeconds": 1, "refresh": {"schedule": "0 3 * * 0"},
        }});
        patched(namespace, &plain, all).await.unwrap();
    })
    .await;
}

#[tokio::test]
async fn a_request_cannot_be_changed_and_once_finished_nor_can_its_status() {
    in_namespace(async |namespace| {
        let object = request(json!({"message": "hello"}));
        let requests: Api<SigningRequest> = namespace.api();
        let parsed: SigningRequest = serde_json::from_value(object.clone()).unwrap();
        requests.create(&PostParams::default(), &parsed).await.unwrap();
        for spec in [
            json!({"message": "other"}),
            json!({"hash": "keccak256"}),
            json!({"deadlineSeconds": 61}),
            json!({"ttlSecondsAfterFinished": 5}),
            json!({"clusterRef": {"name": "other"}}),
            json!({"message": null, "digest": "ab".repeat(32)}),
        ] {
            let refused =
                patched(namespace, &object, json!({"spec": spec})).await.map(|_| "accepted").unwrap_err();
            assert!(
                refused.contains("the spec is immutable: what is signed is asked for once"),
                "{spec}: {refused}"
            );
        }
        let set = async |status: Value| {
            let patch = Patch::Merge(json!({ "status": status }));
            requests.patch_status("pay", &PatchParams::default(), &patch).await.map_err(message)
        };
        set(json!({"phase": "Accepted", "requestId": "1"})).await.unwrap();
        set(json!({"phase": "Complete", "attempts": 1, "finishedAt": "2026-01-01T00:00:00Z"})).await.unwrap();
        for status in [
            json!({"phase": "Failed"}),
            json!({"attempts": 2}),
            json!({"finishedAt": null}),
            json!({"quorum": [1, 2]}),
        ] {
            let refused = set(status.clone()).await.map(|_| "accepted").unwrap_err();
            assert!(
                refused.contains("the status of a finished request never changes"),
                "{status}: {refused}"
            );
        }
        // What is set again as it is was never changed.
        set(json!({"attempts": 1})).await.unwrap();
    })
    .await;
}

/// `kubectl get` shows this table.
async fn columns(namespace: &Namespace, plural: &str) -> Vec<(String, String, i64)> {
    let uri = format!("/apis/tss.network/v1alpha1/namespaces/{}/{plural}", namespace.name);
    let request = Request::get(uri).header("Accept", "application/json;as=Table;v=v1;g=meta.k8s.io");
    let table: Value = namespace.client.request(request.body(Vec::new()).unwrap()).await.unwrap();
    let columns = table["columnDefinitions"].as_array().unwrap().iter();
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    columns
        .map(|column| (text(&column["name"]), text(&column["type"]), column["priority"].as_i64().unwrap()))
        .collect()
}

#[tokio::test]
async fn kubectl_get_shows_what_a_person_wants_to_know() {
    in_namespace(async |namespace| {
        let names = |columns: &[(String, String, i64)], priority: i64| -> Vec<String> {
            columns.iter().filter(|column| column.2 == priority).map(|column| column.0.clone()).collect()
        };
        let clusters = columns(namespace, "tssclusters").await;
        assert_eq!(
            names(&clusters, 0),
            ["Name", "Threshold", "Ready", "Reason", "Signers", "Address", "Age"]
        );
        assert_eq!(names(&clusters, 1), ["Public key"]);
        let requests = columns(namespace, "signingrequests").await;
        assert_eq!(names(&requests, 0), ["Name", "Cluster", "Phase", "Reason", "Age"]);
        assert_eq!(names(&requests, 1), ["Signature"]);
        // And these by the cluster that they name.
        let object: SigningRequest = serde_json::from_value(request(json!({"message": "hello"}))).unwrap();
        let requests: Api<SigningRequest> = namespace.api();
        requests.create(&PostParams::default(), &object).await.unwrap();
        for (name, count) in [("wallet", 1), ("other", 0)] {
            let of = kube::api::ListParams::default().fields(&format!("spec.clusterRef.name={name}"));
            assert_eq!(requests.list(&of).await.unwrap().items.len(), count, "{name}");
        }
    })
    .await;
}

/// Fields without a description, among all that a schema has.
fn undescribed(schema: &Value, path: &str, found: &mut Vec<String>) {
    for (name, field) in schema["properties"].as_object().into_iter().flatten() {
        let path = format!("{path}.{name}");
        let described = field["description"].as_str().is_some_and(|text| !text.is_empty());
        // The API server's own types stand elsewhere in the document.
        if !described && field.get("allOf").is_none() && field.get("$ref").is_none() {
            found.push(path.clone());
        }
        undescribed(field, &path, found);
        undescribed(&field["items"], &path, found);
    }
}

#[tokio::test]
async fn kubectl_explain_explains_every_field() {
    let client = connect().await;
    for kind in ["TssCluster", "SigningRequest"] {
        // What `kubectl explain` reads. It is published a while after the definition.
        let schema = until("the schema is published", async || {
            let request = Request::get("/openapi/v3/apis/tss.network/v1alpha1").body(Vec::new()).unwrap();
            let document: Value = serde_json::from_str(&client.request_text(request).await.ok()?).ok()?;
            document["components"]["schemas"].get(format!("network.tss.v1alpha1.{kind}")).cloned()
        })
        .await;
        assert!(schema["description"].as_str().unwrap().contains("sign"), "{}", schema["description"]);
        let mut missing = Vec::new();
        for part in ["spec", "status"] {
            undescribed(&schema["properties"][part], part, &mut missing);
        }
        assert_eq!(missing, Vec::<String>::new(), "{kind}");
        assert!(schema["properties"]["spec"]["description"].is_string(), "{kind}");
    }
}
