//! Ways to break the law, one rule each.

/// A rule that is broken, and how. `None` everywhere stands for the protocol as it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Flaw {
    /// H1: the place switches to the copy area before the copy has completed.
    SwitchBeforeCopy,
    /// H1: the freeze takes the map before what is cached has been written to the device.
    MapBeforeFlush,
    /// H2: the generation rises after the origin was written.
    RaiseAfterWrite,
    /// H2: the place switches, and the generation rises, after the origin was written.
    SwitchAfterWrite,
    /// H2: a second writer of a unit does not wait for the first one's copy.
    SecondWriterOvertakes,
    /// H2: the witness of a moved volume is its table alone, which may be the old one again.
    TableAlone,
    /// H3: after a restart the generations begin again with the first.
    GenerationsReused,
    /// H4: the generation rises before the place switches, so that an answer may hold the new one beside the old place.
    RaiseBeforeSwitch,
    /// H4: the answer takes the places, and then the generations.
    PlacesThenGenerations,
    /// H4: the generation is the number of exceptions in the live status, not of those in the log that the map was read from.
    StatusForLog,
    /// H4: an answer shares the sample of a request that came earlier.
    SharedSample,
    /// H5: a read through the host checks, and then copies.
    CheckBeforeCopy,
    /// H5: a read through the host sends a reference to the page, not a copy.
    ByReference,
    /// H6: the host answers although the content is lost.
    AnswersThoughLost,
    /// P0: a map that is older than the last confirmation is read by as it is.
    OldMapUnconfirmed,
    /// P1: places are taken from one reply, generations from another.
    MapsMixed,
    /// P2: the generation is asked for before the read has completed.
    AskBeforeReadEnds,
    /// P3: nothing is asked after the read.
    NoCheck,
    /// P4: what moved is read again from its new place, and kept without another check.
    NoSecondCheck,
    /// P5: another frozen image under the same name is gone on with.
    AnotherImage,
}
