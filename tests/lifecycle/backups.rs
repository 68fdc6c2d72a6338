//! Backups, and drills that show that they are good.

use std::os::unix::fs::PermissionsExt as _;

use serde_json::{Value, json};

use crate::installation::Installation;
use crate::{back_up, fails, holders_of, identity, ok, private, read, said, tssctl, unlock, with_backups};

/// What is done to an attestation.
type Alter = fn(&mut Value);

/// Attests a signer's backup, as on a machine that has that one alone, into a file that anybody may read.
fn attest(installation: &Installation, signer: u8, challenge: &str) {
    let machine = installation.folder().join(format!("machine{signer}"));
    std::fs::create_dir_all(&machine).unwrap();
    let names = [format!("backup{signer}"), format!("holder{signer}a"), format!("holder{signer}b")];
    for name in &names {
        std::fs::copy(installation.folder().join(name), machine.join(name)).unwrap();
    }
    let [file, a, b] = names.map(|name| format!("machine{signer}/{name}"));
    let asked = format!("backup attest {file} --identity {b} --identity {a} --challenge {challenge}");
    let line = ok(&tssctl(installation, &asked));
    assert_eq!(line.lines().count(), 1, "{line}");
    std::fs::write(installation.folder().join(format!("attestation{signer}")), line).unwrap();
}

#[test]
fn no_holder_opens_a_backup_alone_and_all_of_them_find_a_share_without_an_engines_part() {
    let installation = Installation::new();
    let public_key = with_backups(&installation);
    for signer in 1..=3 {
        let file = installation.folder().join(format!("backup{signer}"));
        assert_eq!(file.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        for (identities, missing) in [
            ("", "holder 2"),
            (&*format!("--identity holder{signer}a"), "holder 2"),
            (&*format!("--identity holder{signer}b"), "holder 1"),
        ] {
            let alone = tssctl(&installation, &format!("backup attest backup{signer} {identities}"));
            fails(&alone, 1, &[&format!("backup{signer}: "), "cannot be opened", missing]);
        }

        // As another program opens it.
        let bytes = std::fs::read(&file).unwrap();
        let end = bytes.iter().position(|&byte| byte == b'\n').unwrap();
        let header: Value = serde_json::from_slice(&bytes[..end]).unwrap();
        assert_eq!(
            header,
            json!({"backup": 1, "cluster": installation.cluster(), "key": "default", "epoch": 1, "signer": signer,
                "public_key": public_key, "holders": 2})
        );
        let holder = |which: &str| installation.folder().join(format!("holder{signer}{which}"));
        assert!(unlock(&bytes[end + 1..], &holder("a")).is_err());
        let layer = unlock(&bytes[end + 1..], &holder("b")).unwrap();
        assert!(unlock(&layer, &holder("b")).is_err());
        let inside: Value = serde_json::from_slice(&unlock(&layer, &holder("a")).unwrap()).unwrap();
        let share = read(&installation.folder().join(format!("signer{signer}.store")));
        assert!(share["engines"]["dkls23"].as_str().is_some_and(|part| part.len() > 1000));
        assert_eq!((&inside["engines"], &inside["core"]), (&json!({}), &share["core"]));
    }
}

#[test]
fn a_backup_is_of_a_share_that_could_start_and_is_neither_for_one_holder_nor_over_another() {
    let mut installation = Installation::new();
    let recipients = ["x", "y", "z"].map(|name| identity(&installation, name));
    let [x, y, z] = recipients.clone();
    let shares = identity(&installation, "shares.age");
    let recipient = installation.run("tssctl", &["keygen", "--recipient", &shares]);
    ok(&recipient);
    // An encrypted share, as a signer reads it.
    let two = [x.clone(), y.clone()];
    fails(&back_up(&installation, "1", &two, "b"), 1, &["signer1.store", "age_identity_file"]);
    installation.set("TSS_AGE_IDENTITY_FILE", "shares.age");
    for (holders, expected) in [
        (vec![x.clone()], "1 holders: expected 2 to 16"),
        (vec![format!("{x},{y}")], "1 holders: expected 2 to 16"),
        (vec![x.clone(), format!("{y},{x}")], "stands twice"),
    ] {
        fails(&back_up(&installation, "1", &holders, "b"), 1, &["backup file b: ", expected]);
    }
    fails(&back_up(&installation, "1", &["alice".into(), x.clone()], "b"), 2, &["alice", "expected age1"]);
    fails(&installation.run("signer", &["backup", "--index", "1", "--out", "b"]), 2, &["--holder"]);
    assert!(!installation.folder().join("b").exists());

    ok(&back_up(&installation, "1", &[format!("{x},{z}"), y], "b"));
    fails(&back_up(&installation, "2", &two, "b"), 1, &["backup file b: ", "File exists"]);
    // Any one of the first holder's recipients.
    for first in ["x", "z"] {
        let attested =
            ok(&tssctl(&installation, &format!("backup attest b --identity {first} --identity y")));
        assert_eq!(serde_json::from_str::<Value>(&attested).unwrap()["signer"], 1);
    }
    std::fs::set_permissions(installation.folder().join("y"), std::fs::Permissions::from_mode(0o644))
        .unwrap();
    let exposed = tssctl(&installation, "backup attest b --identity x --identity y");
    fails(&exposed, 2, &["age identity file y: ", "permissions are 0644"]);

    installation.set("TSS_KEY", "another");
    fails(&back_up(&installation, "1", &two, "c"), 1, &["key default: expected another"]);
}

#[test]
fn a_drill_on_machines_of_their_own_shows_that_the_backups_give_the_key() {
    let installation = Installation::new();
    let public_key = with_backups(&installation);
    for signer in 1..=3 {
        attest(&installation, signer, "drill-7");
        let text =
            std::fs::read_to_string(installation.folder().join(format!("attestation{signer}"))).unwrap();
        let share = read(&installation.folder().join(format!("signer{signer}.store")));
        assert!(!text.contains(share["core"]["secret_share"].as_str().unwrap()));
    }
    let verify = |line: &str| tssctl(&installation, &format!("backup verify {line}"));
    let key = format!("--expect-public-key {public_key}");
    let all = ok(&verify(&format!("attestation1 attestation2 attestation3 --challenge drill-7 {key}")));
    assert!(all.contains("all 3 signers are good") && all.contains("1 more can be lost"), "{all}");
    assert!(all.contains(&public_key) && !all.contains("may be an old one"), "{all}");

    // Two are enough, and one of them may be opened here.
    let opened = format!("attestation3 backup1 {} --output json", holders_of(&[1]));
    let two: Value = serde_json::from_str(&ok(&verify(&opened))).unwrap();
    assert_eq!(
        (&two["spare"], &two["public_key"], &two["epoch"]),
        (&json!(0), &json!(public_key), &json!(1))
    );
    assert_eq!(two["verified"]["1"]["attestation"], false);
    assert_eq!(two["verified"]["3"]["challenge"], "drill-7");
    let text = ok(&verify("attestation3 attestation2"));
    assert!(text.contains("2 of 3 signers") && text.contains("none of them can be lost"), "{text}");
    assert!(text.contains("may be an old one"), "{text}");
}

#[test]
fn what_was_tampered_with_is_refused_with_the_name_of_its_file() {
    let installation = Installation::new();
    let public_key = with_backups(&installation);
    for signer in [1, 2] {
        attest(&installation, signer, "now");
    }
    let verify = |line: &str| tssctl(&installation, &format!("backup verify {line}"));
    let folder = installation.folder();
    fails(&verify("attestation1"), 1, &["needs good backups of 2 signers: 1 missing, of signers 2, 3"]);
    fails(&verify("attestation1 attestation1"), 1, &["attestation1: it is of signer 1", "different signers"]);
    let one_opened = format!("attestation1 backup1 {}", holders_of(&[1]));
    fails(&verify(&one_opened), 1, &["backup1: it is of signer 1, as attestation1 is"]);
    fails(
        &verify("attestation1 attestation2 --challenge later"),
        1,
        &["attestation1: it was made for the challenge \"now\"", "expected the challenge \"later\""],
    );

    // Another key's backup, attested honestly, and one of another epoch.
    let mut other = Installation::new();
    other.set("TSS_CLUSTER", installation.cluster());
    let other_key = with_backups(&other);
    attest(&other, 2, "now");
    std::fs::copy(other.folder().join("attestation2"), folder.join("other")).unwrap();
    fails(&verify("attestation1 other"), 1, &["other: it is of public key", &other_key, &public_key]);
    let generator = "0279be667ef9dcbbac55a06295ce870b07029bfcdb2dce28d959f2815b16f81798";
    let expected = format!("attestation1 attestation2 --expect-public-key {generator}");
    fails(&verify(&expected), 1, &["attestation1: it is of public key", &format!("expected {generator}")]);
    let store = folder.join("signer2.store");
    let mut later = read(&store);
    later["epoch"] = json!(2);
    private(&store, later.to_string());
    let holders = ["c", "d"].map(|name| identity(&installation, name));
    ok(&back_up(&installation, "2", &holders, "later"));
    let asked = "backup attest later --identity c --identity d --challenge now";
    std::fs::write(folder.join("epoch2"), ok(&tssctl(&installation, asked))).unwrap();
    fails(&verify("attestation1 epoch2"), 1, &["epoch2: it is of epoch 2: expected 1, as attestation1"]);

    let alterations: [(&str, Alter); 8] = [
        ("no proof that whoever made it has the share of signer 3", |told| told["signer"] = json!(3)),
        ("no proof", |told| told["share_of"]["epoch"] = json!(2)),
        ("no proof", |told| told["share_of"]["cluster"] = json!("another")),
        ("no proof", |told| told["challenge"] = json!("then")),
        ("no proof", |told| {
            let proof = told["proof"].as_str().unwrap();
            let flipped = if proof.starts_with('A') { "B" } else { "A" };
            told["proof"] = json!(format!("{flipped}{}", &proof[1..]));
        }),
        ("do not give the public key", |told| {
            told["share_of"]["public_shares"]["1"] = told["share_of"]["public_shares"]["2"].clone();
        }),
        ("do not give the public key", |told| {
            told["share_of"]["public_key"] = told["share_of"]["public_shares"]["2"].clone();
        }),
        ("not an attestation", |told| _ = told.as_object_mut().unwrap().remove("proof")),
    ];
    for (expected, alter) in alterations {
        let mut told = read(&folder.join("attestation2"));
        alter(&mut told);
        std::fs::write(folder.join("altered"), told.to_string()).unwrap();
        fails(&verify("attestation1 altered"), 1, &["altered: ", expected]);
        fails(&verify("altered attestation1"), 1, &["altered: ", expected]);
    }

    // A backup whose first line was exchanged for another signer's.
    let [one, two] = ["backup1", "backup2"].map(|name| std::fs::read(folder.join(name)).unwrap());
    let line = |bytes: &[u8]| bytes.iter().position(|&byte| byte == b'\n').unwrap() + 1;
    private(&folder.join("swapped"), [&one[..line(&one)], &two[line(&two)..]].concat());
    let swapped = verify(&format!("attestation1 swapped {}", holders_of(&[2])));
    fails(&swapped, 1, &["backup file swapped: its first line says signer 1: inside is 2"]);
    let end = two.len() - 1;
    private(&folder.join("cut"), &two[..end]);
    let cut = verify(&format!("attestation1 cut {}", holders_of(&[2])));
    fails(&cut, 1, &["backup file cut: "]);
    assert!(!said(&cut).contains("secret_share"));
}
