//! Checks whether bytes are a message of a given type, without decoding them.
//!
//! Contract: a protobuf decoder for the type accepts every message that passes. Tags and lengths are
//! complete, every known field has its wire type, strings are UTF-8, groups are closed, and nesting
//! is bounded. Unknown fields are skipped, as protobuf requires. Required fields of proto2 are not
//! checked. The check is one pass without allocation: a small message costs some tens of nanoseconds.
//!
//! A known field with another wire type is rejected. Protobuf allows a decoder to treat it as an unknown
//! field, but Rust's decoder and others fail on it. Replicas should not depend on this difference.

use std::{collections::HashMap, fmt};

use prost_reflect::{Cardinality, DescriptorPool, Kind, MessageDescriptor};

/// The nesting limit of prost and most other decoders.
const DEPTH_MAX: u32 = 100;
/// Fields up to this number are found by index, the others by search.
const DENSE_MAX: u32 = 64;

/// The shapes of all request messages of a state machine's methods, with the messages inside them.
#[derive(Default)]
pub(super) struct Shapes {
    messages: Vec<MessageShape>,
}

/// The id of one message in its [`Shapes`].
#[derive(Clone, Copy, Debug)]
pub(super) struct ShapeId(usize);

struct MessageShape {
    name: Box<str>,
    dense: Vec<Option<Field>>,
    sparse: Vec<(u32, Field)>,
}

#[derive(Clone, Copy)]
struct Field {
    content: Content,
    repeated: bool,
}

#[derive(Clone, Copy)]
enum Content {
    Varint,
    Fixed64,
    Fixed32,
    Bytes,
    Utf8,
    Message(ShapeId),
    Group(ShapeId),
}

/// The reason why bytes are not a message of the type.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Malformed {
    message: Box<str>,
    field: Option<u32>,
    reason: &'static str,
}

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "not a well-formed {}: ", self.message)?;
        if let Some(field) = self.field {
            write!(f, "field {field}: ")?;
        }
        f.write_str(self.reason)
    }
}

impl Shapes {
    /// Adds the named message of the pool and the messages inside it.
    pub(super) fn add(&mut self, pool: &DescriptorPool, name: &str) -> Option<ShapeId> {
        let mut known: HashMap<String, ShapeId> = HashMap::new();
        for (index, message) in self.messages.iter().enumerate() {
            known.insert(message.name.to_string(), ShapeId(index));
        }
        Some(self.intern(&pool.get_message_by_name(name)?, &mut known))
    }

    /// Messages may contain themselves, so an id is assigned before the fields are visited. A work
    /// list replaces recursion, since a hostile descriptor may nest deeply.
    fn intern(
        &mut self,
        root: &MessageDescriptor,
        known: &mut HashMap<String, ShapeId>,
    ) -> ShapeId {
        if let Some(id) = known.get(root.full_name()) {
            return *id;
        }
        let mut todo = Vec::new();
        let root_id = self.reserve(root, known, &mut todo);
        while let Some((id, message)) = todo.pop() {
            let mut fields = Vec::new();
            for field in message.fields() {
                let content = match field.kind() {
                    Kind::Double | Kind::Fixed64 | Kind::Sfixed64 => Content::Fixed64,
                    Kind::Float | Kind::Fixed32 | Kind::Sfixed32 => Content::Fixed32,
                    Kind::String => Content::Utf8,
                    Kind::Bytes => Content::Bytes,
                    Kind::Message(inner) => {
                        let inner = match known.get(inner.full_name()) {
                            Some(id) => *id,
                            None => self.reserve(&inner, known, &mut todo),
                        };
                        if field.is_group() {
                            Content::Group(inner)
                        } else {
                            Content::Message(inner)
                        }
                    }
                    _ => Content::Varint,
                };
                let repeated = field.cardinality() == Cardinality::Repeated;
                fields.push((field.number(), Field { content, repeated }));
            }
            self.messages[id.0].set(fields);
        }
        root_id
    }

    fn reserve(
        &mut self,
        message: &MessageDescriptor,
        known: &mut HashMap<String, ShapeId>,
        todo: &mut Vec<(ShapeId, MessageDescriptor)>,
    ) -> ShapeId {
        let id = ShapeId(self.messages.len());
        let name = message.full_name();
        self.messages.push(MessageShape {
            name: name.into(),
            dense: Vec::new(),
            sparse: Vec::new(),
        });
        known.insert(name.to_owned(), id);
        todo.push((id, message.clone()));
        id
    }

    /// Checks whether the bytes are a message with this shape.
    pub(super) fn check(&self, id: ShapeId, bytes: &[u8]) -> Result<(), Malformed> {
        let mut reader = Reader(bytes);
        self.check_message(id, &mut reader, None, 0)
    }

    /// Reads up to the end, or up to the end of the group with this number.
    fn check_message(
        &self,
        id: ShapeId,
        reader: &mut Reader<'_>,
        group: Option<u32>,
        depth: u32,
    ) -> Result<(), Malformed> {
        let message = &self.messages[id.0];
        let fail = |field, reason| Malformed { message: message.name.clone(), field, reason };
        if depth > DEPTH_MAX {
            return Err(fail(None, "nested too deeply"));
        }
        while !reader.0.is_empty() {
            let (number, wire) = reader.tag().map_err(|reason| fail(None, reason))?;
            if wire == Wire::EndGroup {
                return match group {
                    Some(open) if open == number => Ok(()),
                    _ => Err(fail(Some(number), "ends a group that is not open")),
                };
            }
            let at = |reason| fail(Some(number), reason);
            let Some(field) = message.field(number) else {
                reader.skip(number, wire, depth).map_err(at)?;
                continue;
            };
            match (field.content, wire) {
                (Content::Varint, Wire::Varint) => drop(reader.varint().map_err(at)?),
                (Content::Fixed64, Wire::Fixed64) => drop(reader.take(8).map_err(at)?),
                (Content::Fixed32, Wire::Fixed32) => drop(reader.take(4).map_err(at)?),
                (Content::Bytes, Wire::Length) => drop(reader.chunk().map_err(at)?),
                (Content::Utf8, Wire::Length) => {
                    let text = reader.chunk().map_err(at)?;
                    std::str::from_utf8(text).map_err(|_| at("a string that is not UTF-8"))?;
                }
                (Content::Message(inner), Wire::Length) => {
                    let mut inside = Reader(reader.chunk().map_err(at)?);
                    self.check_message(inner, &mut inside, None, depth + 1)?;
                }
                (Content::Group(inner), Wire::StartGroup) => {
                    self.check_message(inner, reader, Some(number), depth + 1)?;
                }
                (content, Wire::Length) if field.repeated => {
                    let packed = reader.chunk().map_err(at)?;
                    content.check_packed(packed).map_err(at)?;
                }
                _ => return Err(at("another wire type than the field has")),
            }
        }
        match group {
            None => Ok(()),
            Some(open) => Err(fail(Some(open), "a group that does not end")),
        }
    }
}

impl MessageShape {
    fn set(&mut self, fields: Vec<(u32, Field)>) {
        for (number, field) in fields {
            if number > DENSE_MAX {
                self.sparse.push((number, field));
                continue;
            }
            let index = number as usize;
            if self.dense.len() <= index {
                self.dense.resize(index + 1, None);
            }
            self.dense[index] = Some(field);
        }
        self.sparse.sort_unstable_by_key(|(number, _)| *number);
    }

    fn field(&self, number: u32) -> Option<Field> {
        if number <= DENSE_MAX {
            return self.dense.get(number as usize).copied().flatten();
        }
        let found = self.sparse.binary_search_by_key(&number, |(number, _)| *number).ok()?;
        Some(self.sparse[found].1)
    }
}

impl Content {
    fn check_packed(self, packed: &[u8]) -> Result<(), &'static str> {
        match self {
            Self::Varint => {
                let mut reader = Reader(packed);
                while !reader.0.is_empty() {
                    reader.varint()?;
                }
                Ok(())
            }
            Self::Fixed64 if packed.len().is_multiple_of(8) => Ok(()),
            Self::Fixed32 if packed.len().is_multiple_of(4) => Ok(()),
            Self::Fixed64 | Self::Fixed32 => Err("packed numbers that are cut off"),
            _ => Err("another wire type than the field has"),
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Wire {
    Varint,
    Fixed64,
    Length,
    StartGroup,
    EndGroup,
    Fixed32,
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, length: usize) -> Result<&'a [u8], &'static str> {
        let (taken, rest) = self.0.split_at_checked(length).ok_or("cut off")?;
        self.0 = rest;
        Ok(taken)
    }

    #[inline]
    fn varint(&mut self) -> Result<u64, &'static str> {
        let mut value = 0_u64;
        for (index, byte) in self.0.iter().enumerate().take(10) {
            // The tenth byte holds the last of the 64 bits.
            if index == 9 && *byte > 1 {
                break;
            }
            value |= u64::from(byte & 0x7f) << (7 * index);
            if *byte < 0x80 {
                self.0 = &self.0[index + 1..];
                return Ok(value);
            }
        }
        Err(if self.0.len() < 10 {
            "a number that is cut off"
        } else {
            "a number of more than 64 bits"
        })
    }

    fn chunk(&mut self) -> Result<&'a [u8], &'static str> {
        let length = self.varint()?;
        self.take(usize::try_from(length).map_err(|_| "cut off")?)
    }

    fn tag(&mut self) -> Result<(u32, Wire), &'static str> {
        let tag = u32::try_from(self.varint()?).map_err(|_| "a field number that is too large")?;
        let wire = match tag & 7 {
            0 => Wire::Varint,
            1 => Wire::Fixed64,
            2 => Wire::Length,
            3 => Wire::StartGroup,
            4 => Wire::EndGroup,
            5 => Wire::Fixed32,
            _ => return Err("a wire type that does not exist"),
        };
        match tag >> 3 {
            0 => Err("field number 0"),
            number => Ok((number, wire)),
        }
    }

    fn skip(&mut self, number: u32, wire: Wire, depth: u32) -> Result<(), &'static str> {
        if depth > DEPTH_MAX {
            return Err("nested too deeply");
        }
        match wire {
            Wire::Varint => drop(self.varint()?),
            Wire::Fixed64 => drop(self.take(8)?),
            Wire::Fixed32 => drop(self.take(4)?),
            Wire::Length => drop(self.chunk()?),
            Wire::EndGroup => return Err("ends a group that is not open"),
            Wire::StartGroup => loop {
                match self.tag()? {
                    (inner, Wire::EndGroup) if inner == number => break,
                    (inner, wire) => self.skip(inner, wire, depth + 1)?,
                }
            },
        }
        Ok(())
    }
}

#[cfg(test)]
#[path = "shape_tests.rs"]
mod tests;
