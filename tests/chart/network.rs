//! The sample network, what tests it, the servers for a trial, and the notes.

use clap::{Args as _, FromArgMatches as _};
use serde_json::{Value, json};
use tss_operator::crd::TssCluster;
use tss_operator::sign_test::SignTestOptions;

use crate::helm::{Chart, TSS_CLUSTER, of_kind, the};

fn network(values: &str) -> Vec<Value> {
    Chart::new("tss-network").values(values).apis(&[TSS_CLUSTER]).objects()
}

#[test]
fn the_sample_network_is_the_example() {
    let made = network("cluster: {enabled: true}");
    let read = |object: &Value| serde_json::from_value::<TssCluster>(object.clone()).unwrap();
    let example = crate::helm::read("config/kubernetes/examples/tsscluster.yaml");
    let example = &crate::helm::objects(&example)[0];
    let (ours, example) = (read(the(&made, "TssCluster")), read(example));
    assert_eq!(ours.spec, example.spec);
    assert_eq!(ours.metadata.name, example.metadata.name);
}

#[test]
fn the_rest_of_a_networks_spec_goes_over_the_values() {
    let made = network(
        "{imagePullSecrets: [{name: registry}], cluster: {enabled: true, name: wallet, threshold: 3, signers: 5, \
         mongodb: {existingSecret: m, existingSecretKey: k, port: 27018}, \
         spec: {signers: 7, rabbitmq: {port: 5671}, policy: {configMap: p}, fieldOfTomorrow: {a: 1}}}}",
    );
    let cluster = the(&made, "TssCluster");
    assert_eq!(cluster["metadata"]["name"], "wallet");
    assert_eq!(
        cluster["spec"],
        json!({
            "threshold": 3, "signers": 7, "auth": {"type": "None"}, "imagePullSecrets": [{"name": "registry"}],
            "rabbitmq": {"uriSecret": {"name": "rabbitmq", "key": "uri"}, "port": 5671},
            "mongodb": {"uriSecret": {"name": "m", "key": "k"}, "port": 27018},
            "policy": {"configMap": "p"}, "fieldOfTomorrow": {"a": 1},
        })
    );
    assert!(of_kind(&made, "Secret").is_empty());
}

#[test]
fn a_uri_becomes_a_secret_that_the_network_names() {
    let made = network("cluster: {enabled: true, rabbitmq: {uri: 'amqp://u:p@h:5672/%2f'}}");
    let secret = the(&made, "Secret");
    assert_eq!(secret["stringData"], json!({"uri": "amqp://u:p@h:5672/%2f"}));
    let named = &the(&made, "TssCluster")["spec"]["rabbitmq"]["uriSecret"];
    assert_eq!(named, &json!({"name": secret["metadata"]["name"], "key": "uri"}));
}

/// It can ask for signatures, which is what it is for, and see one network.
#[test]
fn the_test_may_make_signing_requests_and_nothing_else() {
    let made = network("test: {cluster: wallet, namespace: wallets}");
    let hooks: Vec<&Value> =
        made.iter().filter(|it| it["metadata"]["annotations"]["helm.sh/hook"] == "test").collect();
    let kinds: Vec<&str> = hooks.iter().map(|it| it["kind"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["ServiceAccount", "Role", "RoleBinding", "Pod"]);
    let [account, role, binding, pod] = hooks[..] else { panic!("{kinds:?}") };
    assert_eq!(
        role["rules"],
        json!([
            {"apiGroups": ["tss.network"], "resources": ["signingrequests"], "verbs": ["create", "get", "delete"]},
            {"apiGroups": ["tss.network"], "resources": ["tssclusters"], "resourceNames": ["wallet"], "verbs": ["get"]},
        ])
    );
    for object in [role, binding] {
        assert_eq!(object["metadata"]["namespace"], "wallets");
    }
    assert_eq!(binding["subjects"][0]["name"], account["metadata"]["name"]);
    assert_eq!(binding["subjects"][0]["namespace"], account["metadata"]["namespace"]);
    assert_eq!(binding["roleRef"]["name"], role["metadata"]["name"]);
    assert_eq!(pod["spec"]["serviceAccountName"], account["metadata"]["name"]);
    assert_eq!(pod["metadata"]["namespace"], "tss-network");
    // What it may do is there before it.
    for object in [account, role, binding] {
        assert_eq!(object["metadata"]["annotations"]["helm.sh/hook-weight"], "-1");
    }
}

#[test]
fn the_test_is_a_command_that_the_operator_understands() {
    let made = network("{cluster: {enabled: true, name: wallet}, test: {timeout: 2m}}");
    let pod = &the(&made, "Pod")["spec"];
    let operator = &the(&made, "Deployment")["spec"]["template"]["spec"];
    let container = &pod["containers"][0];
    assert_eq!(container["image"], operator["containers"][0]["image"]);
    // As restricted as the operator itself.
    assert_eq!(pod["securityContext"], operator["securityContext"]);
    assert_eq!(container["securityContext"], operator["containers"][0]["securityContext"]);
    let arguments: Vec<&str> =
        container["args"].as_array().unwrap().iter().map(|argument| argument.as_str().unwrap()).collect();
    let command = SignTestOptions::augment_args(clap::Command::new("sign-test"));
    let options =
        SignTestOptions::from_arg_matches(&command.try_get_matches_from(arguments).unwrap()).unwrap();
    assert_eq!(options.cluster, "wallet");
    assert_eq!(options.namespace.as_deref(), Some("tss-network"));
    assert_eq!(options.timeout.as_secs(), 120);
}

#[test]
fn without_a_network_there_is_no_test() {
    for values in ["{}", "{test: {enabled: false, cluster: wallet}}"] {
        assert!(network(values).iter().all(|object| object["kind"] != "Pod"), "{values}");
    }
}

#[test]
fn the_servers_secrets_are_what_a_network_reads() {
    let made = Chart::new("backing").release("backing", "tss").objects();
    for (server, scheme, port) in [("rabbitmq", "amqp", 5672), ("mongodb", "mongodb", 27017)] {
        let secret = made
            .iter()
            .find(|it| it["kind"] == "Secret" && it["metadata"]["name"] == server)
            .unwrap_or_else(|| panic!("no Secret {server}"));
        let uri = secret["stringData"]["uri"].as_str().unwrap();
        let (user, host) = uri.strip_prefix(&format!("{scheme}://")).unwrap().split_once('@').unwrap();
        assert!(host.starts_with(&format!("backing-{server}.tss.svc:{port}/")), "{uri}");
        let (name, password) = user.split_once(':').unwrap();
        assert_eq!((name, password.len()), ("tss", 32));
        // The server is told the same.
        let told = match server {
            "rabbitmq" => secret["stringData"]["user.conf"].as_str().unwrap().to_owned(),
            _ => secret["stringData"]["password"].as_str().unwrap().to_owned(),
        };
        assert!(told.contains(password), "{told}");
        assert_eq!(secret["metadata"]["annotations"]["helm.sh/resource-policy"], "keep");

        let set = made
            .iter()
            .find(|it| it["kind"] == "StatefulSet" && it["metadata"]["name"] == format!("backing-{server}"));
        let pod = &set.unwrap()["spec"]["template"]["spec"];
        let volume = pod["volumes"].as_array().unwrap().iter().find(|it| it["name"] == "secret").unwrap();
        assert_eq!(volume["secret"]["secretName"], server);
        for item in volume["secret"]["items"].as_array().unwrap() {
            assert!(secret["stringData"].get(item["key"].as_str().unwrap()).is_some(), "{item}");
        }
    }
    let uri = |made: &[Value]| the_secret(made, "rabbitmq")["stringData"]["uri"].clone();
    assert_ne!(
        uri(&made),
        uri(&Chart::new("backing").release("backing", "tss").objects()),
        "the password is not random"
    );
}

fn the_secret<'a>(made: &'a [Value], name: &str) -> &'a Value {
    of_kind(made, "Secret").into_iter().find(|it| it["metadata"]["name"] == name).unwrap()
}

#[test]
fn a_secret_that_is_there_is_used_and_not_made() {
    let made = Chart::new("backing").values("rabbitmq: {existingSecret: mine}").objects();
    let secrets: Vec<&Value> = of_kind(&made, "Secret").iter().map(|it| &it["metadata"]["name"]).collect();
    assert_eq!(secrets, ["mongodb"]);
    let sets = of_kind(&made, "StatefulSet");
    assert!(
        sets.iter()
            .any(|set| set["spec"]["template"]["spec"]["volumes"][0]["secret"]["secretName"] == "mine")
    );
}

/// The commands of a text: its lines that are indented by two.
fn commands(notes: &str) -> Vec<&str> {
    notes.lines().filter_map(|line| line.strip_prefix("  ")).collect()
}

#[test]
fn notes_name_the_next_command() {
    let notes = Chart::new("tss-network").release("r", "n").notes();
    assert_eq!(
        commands(&notes),
        [
            "kubectl --namespace n rollout status deployment/r-tss-network-operator",
            "helm upgrade --install tss-network-crds charts/tss-network-crds",
            "kubectl explain tsscluster.spec",
        ]
    );
    let notes = Chart::new("tss-network").values("{test: {cluster: wallet}, watchNamespace: w}").notes();
    assert!(notes.contains("it looks after w:"), "{notes}");
    assert!(
        commands(&notes).contains(&"helm test tss-network --namespace tss-network --logs --timeout 10m"),
        "{notes}"
    );

    let notes = Chart::new("tss-network-crds").notes();
    let next =
        "helm upgrade --install tss-network charts/tss-network --namespace tss-network --create-namespace";
    assert_eq!(commands(&notes), [next]);
    assert!(
        Chart::new("tss-network-crds").values("keep: false").notes().contains("deletes every TssCluster")
    );

    let notes = Chart::new("backing").release("b", "n").values("mongodb: {secret: m}").notes();
    assert!(notes.starts_with("FOR TRIALS ONLY"), "{notes}");
    assert_eq!(
        commands(&notes),
        [
            "kubectl --namespace n rollout status statefulset/b-rabbitmq",
            "kubectl --namespace n rollout status statefulset/b-mongodb",
            "helm upgrade --install tss-network-crds charts/tss-network-crds",
            "helm upgrade --install tss-network charts/tss-network --namespace n --set cluster.enabled=true \
             --set cluster.mongodb.existingSecret=m",
        ]
    );
}
