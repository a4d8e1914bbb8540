//! What exports say of themselves.

use std::fmt;

use indicatif::HumanBytes;
use nbd_export::proto::HeaderStyle;
use nbd_export::uri::NbdUri;
use serde::Serialize;

use crate::error::{Error, Result};
use crate::escaped::escaped;
use crate::nbd::{Connection, list_contexts, list_exports};

/// One export. Field names are part of the command line's contract.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct ExportDetails {
    /// How it is reached.
    pub uri: String,
    /// Whether the connection was inside TLS.
    pub tls: bool,
    /// How replies look: `simple`, `structured` or `extended`.
    pub replies: &'static str,
    /// Its own name.
    pub name: String,
    /// A text for people, may be empty.
    pub description: String,
    /// Bytes.
    pub size: u64,
    /// The sizes that requests keep to.
    pub block: Block,
    /// The names of its transmission flags.
    pub flags: Vec<String>,
    /// The metadata contexts that it lists.
    pub contexts: Vec<String>,
}

/// The sizes that requests keep to; 1, 4096 and 32 MiB where the server says nothing.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
pub struct Block {
    /// Offsets and lengths are multiples of it.
    pub minimum: u32,
    /// Requests of multiples of it are efficient.
    pub preferred: u32,
    /// Most data in one request.
    pub maximum: u32,
}

/// What a server lists.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct ListedExports {
    /// The exports, in the server's order.
    pub exports: Vec<Listed>,
}

/// One export of a list.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Listed {
    /// Its name; empty for the default one.
    pub name: String,
    /// A text for people, may be empty.
    pub description: String,
}

/// Asks for everything about an export.
///
/// # Errors
/// The server cannot be reached, or has no such export.
pub async fn details(uri: &NbdUri) -> Result<ExportDetails> {
    let failed = |error| Error::from(error).of_volume(escaped(&uri.to_string()));
    let contexts = list_contexts(uri, Vec::new()).await.map_err(failed)?;
    let connection = Connection::connect(uri, Vec::new()).await.map_err(failed)?;
    let session = connection.session().clone();
    connection.disconnect().await;
    let export = session.export;
    Ok(ExportDetails {
        uri: uri.to_string(),
        tls: uri.tls.is_some(),
        replies: match session.style {
            HeaderStyle::Simple => "simple",
            HeaderStyle::Structured => "structured",
            HeaderStyle::Extended => "extended",
        },
        name: export.name.as_str().to_owned(),
        description: export.description,
        size: export.size,
        block: Block {
            minimum: export.block.minimum,
            preferred: export.block.preferred,
            maximum: export.block.maximum,
        },
        flags: export.flags.to_string().split('|').map(str::to_owned).collect(),
        contexts: contexts.iter().map(|name| name.as_str().to_owned()).collect(),
    })
}

/// Asks a server for its exports, on one connection.
///
/// # Errors
/// The server cannot be reached, or does not tell.
pub async fn list(uri: &NbdUri) -> Result<ListedExports> {
    let exports = list_exports(uri).await.map_err(Error::from)?;
    let exports = exports.into_iter().map(|export| Listed {
        name: export.name.as_str().to_owned(),
        description: export.description,
    });
    Ok(ListedExports {
        exports: exports.collect(),
    })
}

/// Some lines for people.
impl fmt::Display for ExportDetails {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Block {
            minimum,
            preferred,
            maximum,
        } = self.block;
        writeln!(f, "export       \"{}\"", escaped(&self.name))?;
        if !self.description.is_empty() {
            writeln!(f, "description  {}", escaped(&self.description))?;
        }
        writeln!(f, "uri          {}", escaped(&self.uri))?;
        writeln!(f, "size         {} ({})", self.size, HumanBytes(self.size))?;
        writeln!(
            f,
            "blocks       minimum {minimum}, preferred {preferred}, maximum {maximum}"
        )?;
        let tls = if self.tls { "inside TLS" } else { "without TLS" };
        writeln!(f, "session      {} replies, {tls}", self.replies)?;
        writeln!(f, "flags        {}", self.flags.join(" "))?;
        for (number, context) in self.contexts.iter().enumerate() {
            let title = if number == 0 { "contexts" } else { "" };
            writeln!(f, "{title:<12} {}", escaped(context))?;
        }
        Ok(())
    }
}

/// A line for each.
impl fmt::Display for ListedExports {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for Listed { name, description } in &self.exports {
            write!(f, "\"{}\"", escaped(name))?;
            if !description.is_empty() {
                write!(f, "  {}", escaped(description))?;
            }
            writeln!(f)?;
        }
        Ok(())
    }
}
