//! Certificates of an authority of our own, in directories as GnuTLS tools, qemu and nbdkit want them.

use std::fs;
use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, CertifiedIssuer, DnType,
    ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose, RevokedCertParams, SanType, SerialNumber,
    date_time_ymd,
};
use tempfile::TempDir;

/// An authority.
pub struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
}

/// A certificate and its key, as PEM.
pub struct Issued {
    /// The certificate.
    pub certificate: String,
    /// Its key.
    pub key: String,
    serial: u64,
}

/// What a certificate says.
pub struct Subject {
    common_name: Option<String>,
    alternative: Vec<SanType>,
    usage: Vec<ExtendedKeyUsagePurpose>,
    expired: bool,
    serial: u64,
}

impl Subject {
    /// A server with these host names and addresses.
    pub fn server(names: &[&str]) -> Self {
        let alternative = |name: &&str| match name.parse::<IpAddr>() {
            Ok(address) => SanType::IpAddress(address),
            Err(_) => SanType::DnsName((*name).try_into().unwrap()),
        };
        Self {
            common_name: Some("a server".to_owned()),
            alternative: names.iter().map(alternative).collect(),
            usage: vec![ExtendedKeyUsagePurpose::ServerAuth],
            expired: false,
            serial: 1,
        }
    }

    /// A client with a common name.
    pub fn client(common_name: &str) -> Self {
        Self {
            common_name: Some(common_name.to_owned()),
            alternative: Vec::new(),
            usage: vec![ExtendedKeyUsagePurpose::ClientAuth],
            expired: false,
            serial: 2,
        }
    }

    /// A client without a common name, with DNS names.
    pub fn client_by_dns(names: &[&str]) -> Self {
        Self {
            common_name: None,
            usage: vec![ExtendedKeyUsagePurpose::ClientAuth],
            serial: 3,
            ..Self::server(names)
        }
    }

    /// One whose time is over.
    #[must_use]
    pub fn expired(self) -> Self {
        Self {
            expired: true,
            ..self
        }
    }

    fn parameters(self) -> CertificateParams {
        let mut parameters = CertificateParams::default();
        parameters.distinguished_name = rcgen::DistinguishedName::new();
        if let Some(name) = self.common_name {
            parameters.distinguished_name.push(DnType::CommonName, name);
        }
        parameters.subject_alt_names = self.alternative;
        // qemu refuses a certificate that may not encipher keys.
        parameters.key_usages = vec![
            KeyUsagePurpose::DigitalSignature,
            KeyUsagePurpose::KeyEncipherment,
        ];
        parameters.extended_key_usages = self.usage;
        parameters.serial_number = Some(SerialNumber::from(self.serial));
        parameters.not_before = date_time_ymd(2020, 1, 1);
        parameters.not_after = date_time_ymd(if self.expired { 2021 } else { 2120 }, 1, 1);
        parameters
    }

    /// Signed by nobody but itself.
    pub fn self_signed(self) -> Issued {
        let (serial, key) = (self.serial, KeyPair::generate().unwrap());
        Issued {
            certificate: self.parameters().self_signed(&key).unwrap().pem(),
            key: key.serialize_pem(),
            serial,
        }
    }
}

impl Authority {
    /// An authority with a key of its own.
    pub fn new(name: &str) -> Self {
        let mut parameters = CertificateParams::default();
        parameters.distinguished_name = rcgen::DistinguishedName::new();
        parameters.distinguished_name.push(DnType::CommonName, name);
        parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        parameters.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate().unwrap();
        Self {
            issuer: CertifiedIssuer::self_signed(parameters, key).unwrap(),
        }
    }

    /// A certificate.
    pub fn issue(&self, subject: Subject) -> Issued {
        let (serial, key) = (subject.serial, KeyPair::generate().unwrap());
        Issued {
            certificate: subject.parameters().signed_by(&key, &self.issuer).unwrap().pem(),
            key: key.serialize_pem(),
            serial,
        }
    }

    /// A list of revoked certificates.
    pub fn revoke(&self, revoked: &[&Issued]) -> String {
        let revoked = revoked.iter().map(|issued| RevokedCertParams {
            serial_number: SerialNumber::from(issued.serial),
            revocation_time: date_time_ymd(2021, 1, 1),
            reason_code: None,
            invalidity_date: None,
        });
        let list = CertificateRevocationListParams {
            this_update: date_time_ymd(2021, 1, 1),
            next_update: date_time_ymd(2120, 1, 1),
            crl_number: SerialNumber::from(1),
            issuing_distribution_point: None,
            revoked_certs: revoked.collect(),
            key_identifier_method: rcgen::KeyIdMethod::Sha256,
        };
        list.signed_by(&self.issuer).unwrap().pem().unwrap()
    }

    /// Its own certificate.
    pub fn certificate(&self) -> String {
        self.issuer.pem()
    }
}

/// A TLS directory.
pub struct TlsDirectory {
    directory: TempDir,
}

impl TlsDirectory {
    /// One that trusts an authority, and has nothing to show for itself.
    pub fn trusting(authority: &Authority) -> Self {
        let directory = Self {
            directory: tempfile::tempdir().unwrap(),
        };
        directory.put("ca-cert.pem", &authority.certificate());
        directory
    }

    /// Adds what a server shows.
    #[must_use]
    pub fn with_server(self, server: &Issued) -> Self {
        self.with("server", server)
    }

    /// Adds what a client shows.
    #[must_use]
    pub fn with_client(self, client: &Issued) -> Self {
        self.with("client", client)
    }

    fn with(self, side: &str, issued: &Issued) -> Self {
        self.put(&format!("{side}-cert.pem"), &issued.certificate);
        self.put(&format!("{side}-key.pem"), &issued.key);
        self
    }

    /// Writes a file, for its owner alone.
    pub fn put(&self, name: &str, text: &str) {
        let path = self.file(name);
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    }

    /// Where a file is.
    pub fn file(&self, name: &str) -> PathBuf {
        self.path().join(name)
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    /// Where it is, as an argument.
    pub fn text(&self) -> &str {
        self.path().to_str().unwrap()
    }
}

/// A server's and a client's directory under one authority.
pub struct Pki {
    /// The authority.
    pub authority: Authority,
    /// The server, called `localhost`, `127.0.0.1` and `::1`.
    pub server: TlsDirectory,
    /// The client, called `proxy`.
    pub client: TlsDirectory,
}

impl Pki {
    /// New ones.
    pub fn new() -> Self {
        let authority = Authority::new("tests");
        let server = authority.issue(Subject::server(&["localhost", "127.0.0.1", "::1"]));
        let client = authority.issue(Subject::client("proxy"));
        Self {
            server: TlsDirectory::trusting(&authority).with_server(&server),
            client: TlsDirectory::trusting(&authority).with_client(&client),
            authority,
        }
    }

    /// The directory of another client.
    pub fn another_client(&self, subject: Subject) -> TlsDirectory {
        TlsDirectory::trusting(&self.authority).with_client(&self.authority.issue(subject))
    }
}

impl Default for Pki {
    fn default() -> Self {
        Self::new()
    }
}
