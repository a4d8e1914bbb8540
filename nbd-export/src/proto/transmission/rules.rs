//! What a request must keep, as one list for both peers.

use crate::proto::constants::CommandCode;
use crate::proto::context::ContextId;
use crate::proto::errno::Errno;
use crate::proto::flags::{CommandFlags, TransmissionFlags};
use crate::proto::limits::MAX_CONTEXTS;
use crate::proto::request::RequestHeader;
use crate::proto::session::{HeaderStyle, Negotiated};

/// A rule that a request breaks. The session goes on: the server answers with [`RuleBroken::errno`] and this
/// text.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum RuleBroken {
    /// Writing to a read-only export.
    #[error("the export is read-only")]
    ReadOnly,
    /// A range that ends behind the export.
    #[error("{command} of {length} bytes at {offset}: the export has {size} bytes")]
    PastEnd {
        /// The command.
        command: CommandCode,
        /// First byte.
        offset: u64,
        /// Number of bytes.
        length: u64,
        /// Size of the export.
        size: u64,
    },
    /// Offset or length off the minimum block size.
    #[error("offset and length must be multiples of {minimum}")]
    Misaligned {
        /// The minimum block size.
        minimum: u32,
    },
    /// More bytes than one request of this session can mean.
    #[error("{length} bytes in one request, {maximum} is the most")]
    TooLong {
        /// Bytes asked for.
        length: u64,
        /// Most bytes.
        maximum: u32,
        /// The reply must not be fragmented.
        dont_fragment: bool,
    },
    /// A flag that this command cannot have, or that was not offered.
    #[error("{command} cannot have the flags {flags} here")]
    BadFlags {
        /// The command.
        command: CommandCode,
        /// The flags that are wrong.
        flags: CommandFlags,
    },
    /// A command that the export does not offer.
    #[error("the export does not offer {0}")]
    NotOffered(CommandCode),
    /// A command that nobody knows.
    #[error("unknown command {0}")]
    UnknownCommand(CommandCode),
    /// FLUSH with an offset or a length.
    #[error("FLUSH has neither offset nor length")]
    FlushWithRange,
    /// BLOCK_STATUS, and no context was selected.
    #[error("no metadata context was selected")]
    NoContexts,
    /// BLOCK_STATUS of nothing.
    #[error("BLOCK_STATUS of 0 bytes")]
    EmptyQuery,
    /// A filter that is malformed, or names an unknown id or one twice.
    #[error("the filter must name selected contexts, each once")]
    BadFilter,
}

impl RuleBroken {
    /// The error value that the specification wants ("Error values").
    pub fn errno(self) -> Errno {
        match self {
            Self::ReadOnly => Errno::Perm,
            Self::PastEnd {
                command: CommandCode::WRITE | CommandCode::WRITE_ZEROES,
                ..
            } => Errno::NoSpc,
            Self::TooLong {
                dont_fragment: true, ..
            } => Errno::Overflow,
            _ => Errno::Inval,
        }
    }

    /// The first byte that cannot be had, where the request has others before it or names it itself.
    pub fn failed_at(self) -> Option<u64> {
        match self {
            // "MUST lie within the bounds of the original offset and length of the client's request."
            Self::PastEnd {
                offset, length, size, ..
            } if length > 0 && offset.checked_add(length).is_some() => Some(offset.max(size)),
            _ => None,
        }
    }
}

/// Holds all that a header says against the session. DISC keeps every rule: it has no reply to break one in.
///
/// # Errors
/// The first rule that is broken.
pub fn check_header(header: &RequestHeader, session: &Negotiated) -> Result<(), RuleBroken> {
    let command = header.command;
    check_offered(command, session)?;
    if session.style != HeaderStyle::Extended && header.length > u64::from(u32::MAX) {
        return Err(RuleBroken::TooLong {
            length: header.length,
            maximum: u32::MAX,
            dont_fragment: false,
        });
    }
    let bad_flags = header.flags.without(allowed_flags(command, session));
    if bad_flags != CommandFlags::NONE {
        return Err(RuleBroken::BadFlags {
            command,
            flags: bad_flags,
        });
    }
    match command {
        CommandCode::READ | CommandCode::WRITE => {
            check_data_length(header, session)?;
            check_range(command, header.offset, header.length, session)
        }
        CommandCode::TRIM | CommandCode::CACHE | CommandCode::WRITE_ZEROES => {
            check_range(command, header.offset, header.length, session)
        }
        CommandCode::FLUSH if (header.offset, header.length) != (0, 0) => Err(RuleBroken::FlushWithRange),
        // The effect length is in the payload: `check_query` follows.
        CommandCode::BLOCK_STATUS if header.flags.contains(CommandFlags::PAYLOAD_LEN) => {
            let longest = 8 + 4 * MAX_CONTEXTS as u64;
            if (12..=longest).contains(&header.length) && header.length.is_multiple_of(4) {
                Ok(())
            } else {
                Err(RuleBroken::BadFilter)
            }
        }
        CommandCode::BLOCK_STATUS => check_query(header.offset, header.length, None, session),
        _ => Ok(()),
    }
}

/// Holds the range and the filter of a BLOCK_STATUS against the session.
///
/// # Errors
/// The first rule that is broken.
pub fn check_query(
    offset: u64,
    length: u64,
    filter: Option<&[ContextId]>,
    session: &Negotiated,
) -> Result<(), RuleBroken> {
    if length == 0 {
        return Err(RuleBroken::EmptyQuery);
    }
    if let Some(ids) = filter {
        let unique = |(n, id)| !ids[..n].contains(id);
        let known = |id: &ContextId| session.context(*id).is_some();
        if ids.is_empty() || !ids.iter().all(known) || !ids.iter().enumerate().all(unique) {
            return Err(RuleBroken::BadFilter);
        }
    }
    check_range(CommandCode::BLOCK_STATUS, offset, length, session)
}

fn check_offered(command: CommandCode, session: &Negotiated) -> Result<(), RuleBroken> {
    let writes = matches!(
        command,
        CommandCode::WRITE | CommandCode::TRIM | CommandCode::WRITE_ZEROES
    );
    if writes && session.offers(TransmissionFlags::READ_ONLY) {
        return Err(RuleBroken::ReadOnly);
    }
    let needed = match command {
        CommandCode::READ | CommandCode::WRITE | CommandCode::DISC => return Ok(()),
        CommandCode::FLUSH => TransmissionFlags::SEND_FLUSH,
        CommandCode::TRIM => TransmissionFlags::SEND_TRIM,
        CommandCode::CACHE => TransmissionFlags::SEND_CACHE,
        CommandCode::WRITE_ZEROES => TransmissionFlags::SEND_WRITE_ZEROES,
        CommandCode::BLOCK_STATUS if session.contexts.is_empty() => return Err(RuleBroken::NoContexts),
        CommandCode::BLOCK_STATUS => return Ok(()),
        unknown => return Err(RuleBroken::UnknownCommand(unknown)),
    };
    if session.offers(needed) {
        Ok(())
    } else {
        Err(RuleBroken::NotOffered(command))
    }
}

/// "Clients MUST NOT set a command flag bit that is not documented for the particular command." FUA is documented
/// for all.
fn allowed_flags(command: CommandCode, session: &Negotiated) -> CommandFlags {
    let when = |offered: bool, flag: CommandFlags| if offered { flag } else { CommandFlags::NONE };
    let fua = when(session.offers(TransmissionFlags::SEND_FUA), CommandFlags::FUA);
    fua | match command {
        CommandCode::READ => when(session.offers(TransmissionFlags::SEND_DF), CommandFlags::DF),
        CommandCode::WRITE => when(session.style == HeaderStyle::Extended, CommandFlags::PAYLOAD_LEN),
        CommandCode::WRITE_ZEROES => {
            CommandFlags::NO_HOLE
                | when(
                    session.offers(TransmissionFlags::SEND_FAST_ZERO),
                    CommandFlags::FAST_ZERO,
                )
        }
        CommandCode::BLOCK_STATUS => {
            CommandFlags::REQ_ONE
                | when(
                    session.style == HeaderStyle::Extended
                        && session.offers(TransmissionFlags::BLOCK_STATUS_PAYLOAD),
                    CommandFlags::PAYLOAD_LEN,
                )
        }
        CommandCode::DISC => CommandFlags::from_wire(u16::MAX),
        _ => CommandFlags::NONE,
    }
}

fn check_data_length(header: &RequestHeader, session: &Negotiated) -> Result<(), RuleBroken> {
    let maximum = session.export.block.payload_limit();
    if header.length > u64::from(maximum) {
        return Err(RuleBroken::TooLong {
            length: header.length,
            maximum,
            dont_fragment: header.flags.contains(CommandFlags::DF),
        });
    }
    Ok(())
}

fn check_range(
    command: CommandCode,
    offset: u64,
    length: u64,
    session: &Negotiated,
) -> Result<(), RuleBroken> {
    let size = session.export.size;
    if offset.checked_add(length).is_none_or(|end| end > size) {
        return Err(RuleBroken::PastEnd {
            command,
            offset,
            length,
            size,
        });
    }
    let minimum = session.export.block.minimum;
    if offset.is_multiple_of(minimum.into()) && length.is_multiple_of(minimum.into()) {
        Ok(())
    } else {
        Err(RuleBroken::Misaligned { minimum })
    }
}
