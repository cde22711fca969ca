//! Checks a serialized `FileDescriptorSet` before it is decoded.
//!
//! Two checks protect the decoder:
//! - A message of two bytes becomes some hundred bytes of memory when it is decoded, so 4 MiB may
//!   become a gigabyte. Therefore the messages are counted first.
//! - prost-reflect panics over a syntax that it does not know, such as an edition. Therefore such a
//!   syntax is rejected first.
//!
//! A set that does not parse here is left to the decoder, which reports the reason.

use super::error::LoadError;

/// The maximum number of messages in a set: files, messages, fields, enums, values, services,
/// methods, options and source locations together. Each takes about a kilobyte when decoded.
const PARTS_MAX: usize = 100_000;
/// The syntaxes that the decoder supports. A file without a syntax is proto2.
const SYNTAXES: [&[u8]; 2] = [b"proto2", b"proto3"];

/// The kinds of messages, distinguished by which of their fields contain other messages.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Part {
    Set,
    File,
    Message,
    Field,
    Enum,
    /// An enum's value, a method, a oneof or a range: field 3, 4 or 2 contains options.
    WithOptions,
    Service,
    SourceInfo,
    /// Options. Each of their fields counts, and their contents are not parsed.
    Options,
    Leaf,
}

impl Part {
    /// Returns the kind of message in field `number`. The numbers are those of
    /// google/protobuf/descriptor.proto, which never change.
    fn in_field(self, number: u64) -> Option<Self> {
        Some(match (self, number) {
            (Self::Set, 1) => Self::File,
            (Self::File, 4) | (Self::Message, 3) => Self::Message,
            (Self::File, 5) | (Self::Message, 4) => Self::Enum,
            (Self::File, 6) => Self::Service,
            (Self::File, 7) | (Self::Message, 2 | 6) => Self::Field,
            (Self::File, 9) => Self::SourceInfo,
            (Self::File | Self::Field, 8) | (Self::Message, 7) => Self::Options,
            (Self::Enum | Self::Service, 3) | (Self::WithOptions, 2..=4) => Self::Options,
            (Self::Message, 5 | 8) | (Self::Enum | Self::Service, 2) => Self::WithOptions,
            (Self::Message, 9) | (Self::Enum, 4) | (Self::SourceInfo, 1) => Self::Leaf,
            (Self::Options, _) => Self::Leaf,
            _ => return None,
        })
    }
}

/// Rejects a set that has too many parts or a syntax that the decoder does not support.
pub(super) fn check(descriptor_set: &[u8]) -> Result<(), LoadError> {
    let mut parts = 0;
    let mut open = vec![(Part::Set, Fields(descriptor_set))];
    let mut file = String::new();
    while let Some((part, fields)) = open.last_mut() {
        let part = *part;
        let Some((number, bytes)) = fields.next() else {
            open.pop();
            continue;
        };
        if part == Part::File && number == 1 {
            file = String::from_utf8_lossy(bytes).into_owned();
        }
        if part == Part::File && number == 12 && !SYNTAXES.contains(&bytes) {
            let editions = if bytes == b"editions" { " (it declares an edition)" } else { "" };
            return Err(LoadError::Descriptor(format!(
                "{file} has the syntax {:?}{editions}, which this version does not support: write `syntax = \"proto3\";` \
                 or `syntax = \"proto2\";` in it",
                super::cut(&String::from_utf8_lossy(bytes), 64)
            )));
        }
        if let Some(inner) = part.in_field(number) {
            parts += 1;
            if parts > PARTS_MAX {
                return Err(LoadError::Descriptor(format!(
                    "it has more than {PARTS_MAX} messages, fields and other parts; leave out what the services do \
                     not need, and source locations (protoc without --include_source_info)"
                )));
            }
            open.push((inner, Fields(bytes)));
        }
    }
    Ok(())
}

/// Iterates over the length-delimited fields of a message: their numbers and bytes. Ends where the
/// message does not parse.
struct Fields<'a>(&'a [u8]);

impl<'a> Iterator for Fields<'a> {
    type Item = (u64, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let tag = self.varint()?;
            match tag & 7 {
                0 => _ = self.varint()?,
                1 => _ = self.take(8)?,
                2 => {
                    let length = usize::try_from(self.varint()?).ok()?;
                    return Some((tag >> 3, self.take(length)?));
                }
                // The beginning or end of a group. Its fields count as fields of the enclosing message.
                3 | 4 => {}
                5 => _ = self.take(4)?,
                _ => return None,
            }
        }
    }
}

impl<'a> Fields<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }

    fn varint(&mut self) -> Option<u64> {
        let mut value = 0;
        for at in 0..10 {
            let byte = *self.take(1)?.first()?;
            value |= u64::from(byte & 0x7f) << (7 * at);
            if byte < 0x80 {
                return Some(value);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test")]

    use prost::Message;
    use prost_reflect::{
        DescriptorPool,
        prost_types::{FileDescriptorProto, FileDescriptorSet},
    };

    use super::*;

    fn refusal(set: &[u8]) -> String {
        check(set).unwrap_err().to_string()
    }

    fn file(syntax: Option<&str>) -> Vec<u8> {
        let file = FileDescriptorProto {
            name: Some("a.proto".to_owned()),
            syntax: syntax.map(str::to_owned),
            ..FileDescriptorProto::default()
        };
        FileDescriptorSet { file: vec![file] }.encode_to_vec()
    }

    #[test]
    fn syntaxes_that_are_not_decoded_are_refused() {
        for syntax in ["", "editions", "proto4"] {
            let refusal = refusal(&file(Some(syntax)));
            assert!(refusal.contains(&format!("a.proto has the syntax {syntax:?}")), "{refusal}");
            assert_eq!(refusal.contains("an edition"), syntax == "editions", "{refusal}");
        }
        for syntax in [None, Some("proto2"), Some("proto3")] {
            check(&file(syntax)).unwrap();
            DescriptorPool::decode(&*file(syntax)).unwrap();
        }
    }

    /// Builds a set whose field at the path `fields` holds `count` empty parts.
    fn bomb(fields: &[u8], count: usize) -> Vec<u8> {
        let mut inner: Vec<u8> = [*fields.last().unwrap(), 0].repeat(count);
        for field in fields.iter().rev().skip(1) {
            let mut outer = vec![*field];
            prost::encoding::encode_varint(inner.len() as u64, &mut outer);
            outer.append(&mut inner);
            inner = outer;
        }
        inner
    }

    #[test]
    fn empty_parts_are_counted_before_they_are_decoded() {
        let tag = |number: u8| number << 3 | 2;
        // Files, messages, nested messages, fields, enum values, methods, locations,
        // uninterpreted options.
        for fields in [
            &[1][..],
            &[1, 4],
            &[1, 4, 3],
            &[1, 4, 2],
            &[1, 5, 2],
            &[1, 6, 2],
            &[1, 9, 1],
            &[1, 8, 15],
        ] {
            let fields: Vec<u8> = fields.iter().map(|number| tag(*number)).collect();
            check(&bomb(&fields, PARTS_MAX - fields.len())).unwrap();
            let refusal = refusal(&bomb(&fields, PARTS_MAX + 1));
            assert!(refusal.contains("more than 100000"), "{refusal}");
        }
    }

    #[test]
    fn what_does_not_parse_is_left_to_the_decoder() {
        for set in
            [&b"\x0a\xff"[..], b"\x0a", b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff", b"\x0f"]
        {
            check(set).unwrap();
        }
    }
}
