//! What counts of what was told at the backup and what is told now.

use super::*;

/// Where certificates are may have changed since the backup; what is given now goes before what was written then.
#[test]
fn a_tls_directory_given_now_goes_before_that_of_the_backup() {
    let found = |told: &str, given: Option<&str>| {
        let told = JobRecord {
            uri: told.to_owned(),
            require_direct: None,
            audit_percent: 0.0,
            no_fallback: false,
            luns: Vec::new(),
            distrusted: Vec::new(),
            parent: None,
            bitmap: None,
        };
        let options = ResumeOptions {
            tls_directory: given.map(Into::into),
            ..ResumeOptions::new("image")
        };
        let directory = |uri: NbdUri| uri.tls.and_then(|tls| tls.directory().map(Path::to_owned));
        uri(&options, Some(&told)).map(directory)
    };
    let old = "nbds://h/vm?tls-certificates=/old";
    assert_eq!(found(old, None).unwrap(), Some("/old".into()));
    assert_eq!(found(old, Some("/new")).unwrap(), Some("/new".into()));
    assert_eq!(found("nbds://h/vm", Some("/new")).unwrap(), Some("/new".into()));
    assert_eq!(
        found("nbd://h/vm", Some("/new")).unwrap_err().kind(),
        ErrorKind::Usage
    );
}
