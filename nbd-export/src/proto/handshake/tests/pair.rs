//! Our client and our server.

use super::*;
use crate::proto::error::PeerIncompatible;

const STYLES: [HeaderStyle; 3] = [
    HeaderStyle::Simple,
    HeaderStyle::Structured,
    HeaderStyle::Extended,
];

#[test]
fn both_sides_agree_in_every_style() {
    for style in STYLES {
        let goal = enter("disk", &["x-volmap:disk:id:b", "base:allocation", "x-none:x"]);
        let (outcome, server) = run_pair(goal, style);
        let Ok(Outcome::Transmission(client)) = outcome else {
            panic!("{outcome:?}");
        };
        assert_eq!(Some(&*client), server.as_ref());
        assert_eq!(client.style, style);
        let names: Vec<_> = client
            .contexts
            .iter()
            .map(|context| context.name.as_str())
            .collect();
        let expected: &[_] = match style {
            HeaderStyle::Simple => &[],
            HeaderStyle::Structured => &["base:allocation"],
            HeaderStyle::Extended => &["x-volmap:disk:id:b", "base:allocation"],
        };
        assert_eq!(names, expected);
    }
}

#[test]
fn flags_are_offered_only_where_they_may_be_used() {
    let flags = |style, contexts: &[&str]| {
        let (outcome, _) = run_pair(enter("", contexts), style);
        let Ok(Outcome::Transmission(session)) = outcome else {
            panic!("{outcome:?}");
        };
        ALL_FLAGS.without(session.export.flags)
    };
    let (df, filter) = (
        TransmissionFlags::SEND_DF,
        TransmissionFlags::BLOCK_STATUS_PAYLOAD,
    );
    assert_eq!(flags(HeaderStyle::Simple, &["base:allocation"]), df | filter);
    assert_eq!(flags(HeaderStyle::Structured, &["base:allocation"]), filter);
    assert_eq!(flags(HeaderStyle::Extended, &[]), filter);
    assert_eq!(
        flags(HeaderStyle::Extended, &["base:allocation"]),
        TransmissionFlags::NONE
    );
}

#[test]
fn exports_are_listed() {
    let (outcome, entered) = run_pair(Goal::ListExports, HeaderStyle::Extended);
    let Ok(Outcome::Exports(exports)) = outcome else {
        panic!("{outcome:?}");
    };
    assert_eq!(exports, Shelf.list().unwrap());
    assert_eq!(entered, None);
}

#[test]
fn contexts_are_listed_by_prefix() {
    let list = |queries: &[&str], style| {
        let goal = Goal::ListContexts {
            export: name("disk"),
            queries: queries.iter().copied().map(context).collect(),
        };
        match run_pair(goal, style).0 {
            Ok(Outcome::Contexts(names)) => Ok(names.len()),
            Ok(other) => panic!("{other:?}"),
            Err(error) => Err(error),
        }
    };
    assert_eq!(list(&[], HeaderStyle::Extended), Ok(4));
    assert_eq!(list(&["x-volmap:"], HeaderStyle::Extended), Ok(3));
    assert_eq!(list(&["x-volmap:disk:", "base:"], HeaderStyle::Extended), Ok(3));
    assert_eq!(list(&["x-other:"], HeaderStyle::Extended), Ok(0));
    assert_eq!(list(&["x-volmap:"], HeaderStyle::Structured), Ok(0));
    assert_eq!(
        list(&[], HeaderStyle::Simple),
        Err(PeerIncompatible::NoContexts.into())
    );
}

#[test]
fn a_refused_export_is_a_typed_error() {
    for (export, reply) in [
        ("nothing", OptionReplyCode::ERR_UNKNOWN),
        ("secret", OptionReplyCode::ERR_POLICY),
        ("gone", OptionReplyCode::ERR_SHUTDOWN),
    ] {
        for contexts in [&["base:allocation"][..], &[]] {
            let (outcome, _) = run_pair(enter(export, contexts), HeaderStyle::Extended);
            let Err(ProtocolError::Refused(refused)) = outcome else {
                panic!("{outcome:?}");
            };
            assert_eq!(refused.reply, reply);
            assert!(!refused.text.as_str().is_empty());
        }
    }
}

#[test]
fn every_legal_name_length_goes_through() {
    for len in [0, 1, 255, 256, 4095, 4096] {
        for style in STYLES {
            let (outcome, _) = run_pair(enter(&"n".repeat(len), &["base:allocation"]), style);
            assert!(matches!(outcome, Ok(Outcome::Transmission(_))), "{len}");
        }
    }
}
