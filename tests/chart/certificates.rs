//! Certificates that cert-manager makes for managers, and whom the operator believes.

use serde_json::{Value, json};
use tss_operator::cluster::names;
use tss_operator::crd::{Scheme, TssCluster};

use crate::helm::{Chart, TSS_CLUSTER, of_kind, the};

fn made(values: &str) -> Vec<Value> {
    Chart::new("tss-network").values(values).apis(&[TSS_CLUSTER]).objects()
}

/// The operator's container and the volumes of its Pod.
fn operator(objects: &[Value]) -> (&Value, &Value) {
    let pod = &the(objects, "Deployment")["spec"]["template"]["spec"];
    (&pod["containers"][0], &pod["volumes"])
}

/// Where the operator looks for authorities; nowhere, if it is told nothing.
fn authorities(container: &Value) -> Option<&str> {
    let variables = container["env"].as_array().unwrap();
    variables.iter().find(|it| it["name"] == "MANAGER_CA")?["value"].as_str()
}

#[test]
fn nothing_is_made_for_cert_manager_unless_it_is_asked_for() {
    let made = made("cluster: {enabled: true}");
    assert!(of_kind(&made, "Certificate").is_empty() && of_kind(&made, "Issuer").is_empty());
    let (container, volumes) = operator(&made);
    assert_eq!((authorities(container), volumes), (None, &Value::Null));
}

#[test]
fn the_certificate_is_for_the_name_that_the_operator_calls_and_goes_where_managers_look() {
    let made = made(
        "cluster: {enabled: true, name: wallet, certManager: {enabled: true, dnsNames: [sign.example]}}",
    );
    let cluster: TssCluster = serde_json::from_value(the(&made, "TssCluster").clone()).unwrap();
    assert_eq!(cluster.spec.manager.replicas, 2, "the rest is as it is without");
    let secret = cluster.spec.manager.tls.unwrap().secret_name;
    let certificates = of_kind(&made, "Certificate");
    let [authority, certificate] = certificates[..] else { panic!("{certificates:#?}") };
    assert_eq!(certificate["spec"]["secretName"], secret);
    let called = names::manager_url(Scheme::Https, "tss-network", "wallet");
    let names = certificate["spec"]["dnsNames"].as_array().unwrap();
    let name = called.strip_prefix("https://").unwrap().rsplit_once(':').unwrap().0;
    assert_eq!(names[0], name);
    assert!(names.contains(&json!("sign.example")), "{names:?}");

    // An authority of its own: it vouches for itself, and the Issuer that it is the secret of for the certificate.
    let issuers = of_kind(&made, "Issuer");
    let issuer = |name: &Value| issuers.iter().find(|it| it["metadata"]["name"] == *name).unwrap();
    assert_eq!(authority["spec"]["isCA"], true);
    assert_eq!(issuer(&authority["spec"]["issuerRef"]["name"])["spec"], json!({"selfSigned": {}}));
    let signs = issuer(&certificate["spec"]["issuerRef"]["name"]);
    assert_eq!(signs["spec"], json!({"ca": {"secretName": authority["spec"]["secretName"]}}));

    // The operator sees the authority's certificate, and not the manager's private key.
    let (container, volumes) = operator(&made);
    assert_eq!(authorities(container), Some("/etc/tss-manager-ca/ca.crt"));
    assert_eq!(
        volumes,
        &json!([{"name": "manager-ca", "secret": {
            "secretName": secret, "optional": true, "items": [{"key": "ca.crt", "path": "ca.crt"}],
        }}])
    );
    assert_eq!(
        container["volumeMounts"],
        json!([{"name": "manager-ca", "mountPath": "/etc/tss-manager-ca", "readOnly": true}])
    );
}

#[test]
fn another_issuer_is_taken_as_it_is_named() {
    let made = made(
        "{managerCa: {configMap: corporate, key: bundle.pem}, cluster: {enabled: true, certManager: {enabled: true, \
         duration: 720h, issuerRef: {name: corporate, kind: ClusterIssuer}}}}",
    );
    assert!(of_kind(&made, "Issuer").is_empty());
    let spec = &the(&made, "Certificate")["spec"];
    assert_eq!(spec["issuerRef"], json!({"name": "corporate", "kind": "ClusterIssuer"}));
    assert_eq!(spec["duration"], "720h");
    let (_, volumes) = operator(&made);
    let items = json!([{"key": "bundle.pem", "path": "ca.crt"}]);
    assert_eq!(
        volumes[0],
        json!({"name": "manager-ca", "configMap": {"name": "corporate", "optional": true, "items": items}})
    );
}

/// What a person says about the network goes before what the chart would.
#[test]
fn a_certificate_of_ones_own_needs_no_cert_manager() {
    let made = made(
        "{managerCa: {existingSecret: authority}, extraVolumes: [{name: a, emptyDir: {}}], \
         extraVolumeMounts: [{name: a, mountPath: /a}], \
         cluster: {enabled: true, spec: {manager: {tls: {secretName: mine}}}}}",
    );
    assert_eq!(the(&made, "TssCluster")["spec"]["manager"]["tls"]["secretName"], "mine");
    let (container, volumes) = operator(&made);
    assert_eq!(volumes[0]["secret"]["secretName"], "authority");
    assert_eq!((&volumes[1]["name"], &container["volumeMounts"][1]["name"]), (&json!("a"), &json!("a")));
}
