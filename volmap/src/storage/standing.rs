//! The word of a witness.

/// What a witness says when it is asked.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Standing {
    /// Nobody else can have changed bytes or places since the witness was taken.
    Good,
    /// Bytes may have moved since; nobody else can have changed them. The reason is for the operator.
    MappingLost(String),
    /// Bytes may have been changed by somebody else. The reason is for the operator.
    ContentLost(String),
}
