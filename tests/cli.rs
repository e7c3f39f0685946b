//! The program as a person uses it: arguments, configuration, exit statuses, error texts.

mod support;

use support::{Home, run, sh};

#[test]
fn a_backup_is_made_listed_shown_verified_and_extracted() {
    let home = Home::new().documents().ready();
    let outcome = home.backup(0);
    let name = home.only();
    assert_eq!(outcome["name"], name);
    assert_eq!(outcome["state"], "complete");
    let rows = home.tars(&["list", "--json"]).expect(0).json();
    assert_eq!(rows[0]["name"], name);
    assert_eq!(rows[0]["latest"], true);
    assert!(rows[0]["verified"]["time"].is_string(), "delivery read it back");
    home.tars(&["list"]).expect(0).says(&name).says("complete").says("nas");
    home.tars(&["show", &name]).expect(0).says("documents.tar.gz");
    home.tars(&["verify", &name]).expect(0).says("good (digest)");
    home.tars(&["verify", "--latest", "--deep"]).expect(0).says("good (every component read)");
    home.tars(&["extract", &name, "documents.tar.gz", "--to", &home.at("out")]).expect(0);
    assert_eq!(sh(&format!("tar -xzOf '{}' ./a.txt", home.at("out/documents.tar.gz"))), "hello\n");
    assert_eq!(sh(&format!("ls -A '{}'", home.at("out"))), "documents.tar.gz\n");
    home.assert_nothing_left();
}

#[test]
fn an_archive_that_lies_anywhere_is_verified_and_extracted_without_a_configuration() {
    let home = Home::new().documents().ready();
    home.backup(0);
    sh(&format!("cp -r '{}' '{}'", home.at("store/daily"), home.at("elsewhere")));
    let archive = home.at(&format!("elsewhere/{}.tar.gz", home.only()));
    run(support::PROGRAM, &["verify", "--deep", &archive]).expect(0).says("good");
    run(support::PROGRAM, &["extract", &archive, "--to", &home.at("out")]).expect(0);
    assert!(home.path("out/RESTORE.md").exists());
}
