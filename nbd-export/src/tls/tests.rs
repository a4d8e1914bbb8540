//! TLS in memory: what a directory may hold, and who gets in by it.

use std::fs::{self, File, Permissions};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::sync::Arc;

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, CertifiedIssuer,
    CrlDistributionPoint, CrlIssuingDistributionPoint, CrlScope, DistinguishedName, DnType, IsCa,
    KeyIdMethod, KeyPair, KeyUsagePurpose, RevokedCertParams, SanType, SerialNumber, date_time_ymd,
};
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::version::{TLS12, TLS13};
use rustls::{ClientConfig, ProtocolVersion, RootCertStore, SupportedProtocolVersion};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_rustls::TlsConnector;

use super::*;

/// Serial numbers.
const SERVER: u64 = 1;
const CLIENT: u64 = 2;
const REVOKED: u64 = 3;

struct Authority(CertifiedIssuer<'static, KeyPair>);

/// What a revocation list says beside its issuer.
struct List {
    revoked: Vec<u64>,
    until: i32,
    part: Option<CrlScope>,
}

impl List {
    fn of(revoked: &[u64]) -> Self {
        Self {
            revoked: revoked.to_vec(),
            until: 2120,
            part: None,
        }
    }
}

impl Authority {
    fn new(name: &str) -> Self {
        let mut parameters = CertificateParams::default();
        parameters.distinguished_name = DistinguishedName::new();
        parameters.distinguished_name.push(DnType::CommonName, name);
        parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        parameters.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate().unwrap();
        Self(CertifiedIssuer::self_signed(parameters, key).unwrap())
    }

    fn list(&self, list: List) -> String {
        let revoked = list.revoked.into_iter().map(|serial| RevokedCertParams {
            serial_number: SerialNumber::from(serial),
            revocation_time: date_time_ymd(2021, 1, 1),
            reason_code: None,
            invalidity_date: None,
        });
        let part = |scope| CrlIssuingDistributionPoint {
            distribution_point: CrlDistributionPoint {
                uris: vec!["http://ca.example/part.crl".to_owned()],
            },
            scope: Some(scope),
        };
        let parameters = CertificateRevocationListParams {
            this_update: date_time_ymd(2021, 1, 1),
            next_update: date_time_ymd(list.until, 1, 1),
            crl_number: SerialNumber::from(1),
            issuing_distribution_point: list.part.map(part),
            revoked_certs: revoked.collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        parameters.signed_by(&self.0).unwrap().pem().unwrap()
    }
}

/// A certificate for `localhost`, with these common names.
fn parameters(serial: u64, common_names: &[&str]) -> CertificateParams {
    let mut parameters = CertificateParams::default();
    parameters.distinguished_name = DistinguishedName::new();
    // rcgen knows one of each kind, so each further one has to look like another kind.
    for (n, name) in common_names.iter().enumerate() {
        let kind = match n {
            0 => DnType::CommonName,
            _ => DnType::CustomDnType(vec![2, 5, 4, 3]),
        };
        parameters.distinguished_name.push(kind, *name);
    }
    parameters.subject_alt_names = vec![SanType::DnsName("localhost".try_into().unwrap())];
    parameters.serial_number = Some(SerialNumber::from(serial));
    parameters
}

/// A directory that trusts `trusted`, with one certificate of `issuer` for either side.
fn directory(trusted: &[&Authority], issuer: &Authority, certificate: &CertificateParams) -> TempDir {
    let directory = tempfile::tempdir().unwrap();
    let put = |name: &str, text: &str| {
        let path = directory.path().join(name);
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
    };
    let roots: String = trusted.iter().map(|authority| authority.0.pem()).collect();
    put("ca-cert.pem", &roots);
    let key = KeyPair::generate().unwrap();
    let certificate = certificate.signed_by(&key, &issuer.0).unwrap().pem();
    for side in ["server", "client"] {
        put(&format!("{side}-cert.pem"), &certificate);
        put(&format!("{side}-key.pem"), &key.serialize_pem());
    }
    directory
}

fn with_lists(directory: TempDir, lists: &[String]) -> TempDir {
    fs::write(directory.path().join("ca-crl.pem"), lists.concat()).unwrap();
    directory
}

/// The names that a server finds a client to have, if it lets it in.
async fn enter(server: &TempDir, client: &TempDir) -> Result<Vec<String>, TlsError> {
    let server = ServerTls::load(server.path()).unwrap();
    let client = ClientTls::load(client.path()).unwrap();
    let (near, far) = tokio::io::duplex(1 << 16);
    let (accepted, _) = tokio::join!(server.accept(near), client.connect(far, "localhost"));
    accepted.map(|(_, names)| names).map_err(|(error, _)| error)
}

/// Why neither side takes a directory.
fn refusal(directory: &TempDir) -> String {
    let server = ServerTls::load(directory.path()).err().unwrap().to_string();
    let client = ClientTls::load(directory.path()).err().unwrap().to_string();
    assert_eq!(server, client);
    assert!(server.contains("ca-crl.pem"), "{server}");
    server
}

#[tokio::test]
async fn of_several_common_names_none_counts() {
    let authority = Authority::new("authority");
    let trusted = [&authority];
    let server = directory(&trusted, &authority, &parameters(SERVER, &["server"]));
    for (common_names, names) in [
        (&["one"][..], &["one", "localhost"][..]),
        (&[], &["localhost"]),
        (&["one", "two"], &["localhost"]),
        (&["one", "one"], &["localhost"]),
        (&["o\nne"], &["localhost"]),
    ] {
        let client = directory(&trusted, &authority, &parameters(CLIENT, common_names));
        assert_eq!(enter(&server, &client).await.unwrap(), names, "{common_names:?}");
    }
}

#[tokio::test]
async fn a_list_revokes_for_its_authority_alone() {
    let (one, other) = (Authority::new("one"), Authority::new("other"));
    let trusted = [&one, &other];
    let server = directory(&trusted, &one, &parameters(SERVER, &[]));
    let server = with_lists(server, &[one.list(List::of(&[REVOKED]))]);
    for (issuer, serial, admitted) in [
        (&one, CLIENT, true),
        (&one, REVOKED, false),
        (&other, REVOKED, true),
    ] {
        let client = directory(&trusted, issuer, &parameters(serial, &[]));
        assert_eq!(enter(&server, &client).await.is_ok(), admitted, "{serial}");
    }
    // With a list each.
    let lists = [
        one.list(List::of(&[REVOKED])),
        other.list(List::of(&[CLIENT, REVOKED])),
    ];
    let server = with_lists(server, &lists);
    for (issuer, serial, admitted) in [
        (&one, CLIENT, true),
        (&one, REVOKED, false),
        (&other, CLIENT, false),
    ] {
        let client = directory(&trusted, issuer, &parameters(serial, &[]));
        assert_eq!(enter(&server, &client).await.is_ok(), admitted, "{serial}");
    }
}

#[tokio::test]
async fn a_list_that_is_out_of_date_lets_nobody_of_its_authority_in() {
    let (one, other) = (Authority::new("one"), Authority::new("other"));
    let trusted = [&one, &other];
    let old = List {
        until: 2022,
        ..List::of(&[REVOKED])
    };
    let server = directory(&trusted, &one, &parameters(SERVER, &[]));
    let server = with_lists(server, &[one.list(old)]);
    for (issuer, admitted) in [(&one, false), (&other, true)] {
        let client = directory(&trusted, issuer, &parameters(CLIENT, &[]));
        assert_eq!(enter(&server, &client).await.is_ok(), admitted);
    }
}

#[test]
fn lists_that_would_not_be_heeded_are_refused() {
    let (one, other) = (Authority::new("one"), Authority::new("other"));
    let fresh = || directory(&[&one], &one, &parameters(SERVER, &[]));
    // The newer one revokes more, wherever it stands.
    let (older, newer) = (one.list(List::of(&[])), one.list(List::of(&[REVOKED])));
    for lists in [[older.clone(), newer.clone()], [newer.clone(), older.clone()]] {
        let told = refusal(&with_lists(fresh(), &lists));
        assert!(told.contains("two revocation lists of CN=one"), "{told}");
    }
    let told = refusal(&with_lists(
        fresh(),
        &[newer.clone(), other.list(List::of(&[REVOKED]))],
    ));
    assert!(
        told.contains("CN=other") && told.contains("ca-cert.pem has no authority"),
        "{told}"
    );
    for part in [CrlScope::UserCertsOnly, CrlScope::CaCertsOnly] {
        let part = List {
            part: Some(part),
            ..List::of(&[REVOKED])
        };
        let told = refusal(&with_lists(fresh(), &[one.list(part)]));
        assert!(told.contains("issuing distribution point"), "{told}");
    }
    // What is no list, and none at all.
    let certificate = one.0.pem().replace("CERTIFICATE", "X509 CRL");
    refusal(&with_lists(fresh(), &[certificate]));
    refusal(&with_lists(fresh(), &[one.0.pem()]));
    let alone = with_lists(fresh(), &[newer]);
    assert!(ServerTls::load(alone.path()).is_ok() && ClientTls::load(alone.path()).is_ok());
}

#[test]
fn a_link_that_leads_nowhere_is_no_missing_file() {
    let authority = Authority::new("authority");
    let fresh = || directory(&[&authority], &authority, &parameters(SERVER, &[]));
    assert!(ServerTls::load(fresh().path()).is_ok());
    let dangling = fresh();
    symlink("nowhere", dangling.path().join("ca-crl.pem")).unwrap();
    refusal(&dangling);
    // A client that shows nothing would be told that it is nobody, and not why.
    let dangling = fresh();
    for name in ["client-cert.pem", "client-key.pem"] {
        fs::remove_file(dangling.path().join(name)).unwrap();
    }
    assert!(ClientTls::load(dangling.path()).is_ok());
    symlink("nowhere", dangling.path().join("client-cert.pem")).unwrap();
    let error = ClientTls::load(dangling.path()).err().unwrap();
    assert!(matches!(error, TlsError::Unreadable { .. }), "{error}");
}

#[test]
fn a_key_that_everybody_can_read_is_warned_about() {
    let authority = Authority::new("authority");
    let directory = directory(&[&authority], &authority, &parameters(SERVER, &[]));
    let key = directory.path().join("server-key.pem");
    for (mode, warned) in [(0o600, false), (0o640, false), (0o644, true), (0o602, true)] {
        fs::set_permissions(&key, Permissions::from_mode(mode)).unwrap();
        let path = directory.path().join("log");
        let log = Arc::new(File::create(&path).unwrap());
        let subscriber = tracing_subscriber::fmt().with_writer(log).finish();
        tracing::subscriber::with_default(subscriber, || ServerTls::load(directory.path()).map(|_| ()))
            .unwrap();
        let told = fs::read_to_string(path).unwrap();
        assert_eq!(told.contains("server-key.pem"), warned, "{mode:o}: {told}");
    }
}

/// A client of the directory that speaks one version only.
fn client_of(directory: &TempDir, version: &'static SupportedProtocolVersion) -> ClientConfig {
    let path = |name: &str| directory.path().join(name);
    let certificates = |name: &str| -> Vec<CertificateDer<'static>> {
        let read = CertificateDer::pem_file_iter(path(name)).unwrap();
        read.collect::<Result<_, _>>().unwrap()
    };
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(certificates("ca-cert.pem"));
    let key = PrivateKeyDer::from_pem_file(path("client-key.pem")).unwrap();
    ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_protocol_versions(&[version])
        .unwrap()
        .with_root_certificates(roots)
        .with_client_auth_cert(certificates("client-cert.pem"), key)
        .unwrap()
}

#[tokio::test]
async fn tls_1_2_and_1_3_are_spoken() {
    let authority = Authority::new("authority");
    let directory = directory(&[&authority], &authority, &parameters(SERVER, &["name"]));
    for (version, spoken) in [
        (&TLS12, ProtocolVersion::TLSv1_2),
        (&TLS13, ProtocolVersion::TLSv1_3),
    ] {
        let connector = TlsConnector::from(Arc::new(client_of(&directory, version)));
        let server = ServerTls::load(directory.path()).unwrap();
        let (near, far) = tokio::io::duplex(1 << 16);
        let name = ServerName::try_from("localhost").unwrap();
        let (accepted, connected) = tokio::join!(server.accept(near), connector.connect(name, far));
        assert_eq!(
            accepted.map_err(|(error, _)| error).unwrap().1,
            ["name", "localhost"]
        );
        assert_eq!(connected.unwrap().get_ref().1.protocol_version(), Some(spoken));
    }
}

#[tokio::test]
async fn tls_1_1_is_refused() {
    let authority = Authority::new("authority");
    let directory = directory(&[&authority], &authority, &parameters(SERVER, &["name"]));
    let server = ServerTls::load(directory.path()).unwrap();
    // RFC 4346, 7.4.1.2: a hello of version 3.2, in all else one that 1.2 could be spoken with.
    let mut hello = vec![3, 2];
    hello.extend([7; 32]);
    hello.extend([0, 0, 2, 0xc0, 0x2b, 1, 0]);
    hello.extend([0, 8, 0, 13, 0, 4, 0, 2, 4, 3]);
    let mut record = vec![22, 3, 1, 0, 55, 1, 0, 0, 51];
    record.extend(&hello);
    let (near, mut far) = tokio::io::duplex(1 << 16);
    far.write_all(&record).await.unwrap();
    let (error, stream) = server.accept(near).await.err().unwrap();
    assert!(
        matches!(&error, TlsError::Handshake(source) if source.to_string().contains("Tls12NotOffered")),
        "{error:?}"
    );
    drop(stream);
    let mut alert = Vec::new();
    far.read_to_end(&mut alert).await.unwrap();
    // A fatal alert, protocol_version.
    assert_eq!(alert[5..], [2, 70], "{alert:?}");
}
