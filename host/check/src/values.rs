//! Generates values for the fields of requests.
//!
//! Calls affect each other only if they use the same keys. So most values come from small pools or
//! from earlier responses, preferably from a field of the same name: ids, revisions, page tokens.
//! The other values are edge cases: empty, longest, smallest, largest.

use std::collections::{BTreeMap, HashMap};

use prost_reflect::{
    DynamicMessage, FieldDescriptor, Kind, MapKey, MessageDescriptor, ReflectMessage, Value,
};
use rand::{RngExt, SeedableRng, rngs::Xoshiro256PlusPlus};

/// Maximum depth of nested messages.
const DEPTH_MAX: usize = 4;
/// Maximum number of values in one request, so that nested lists are bounded.
const VALUES_MAX: usize = 200;
/// Maximum number of remembered values per field name.
const LEARNED_MAX: usize = 16;
/// Maximum size of a remembered text or byte string.
const LEARNED_BYTES_MAX: usize = 4096;

/// Few texts, so that different calls use the same ones.
const TEXTS: [&str; 8] = ["a", "b", "c", "app/color", "app/size", "fig", "pear", "z"];
/// Texts that state machines often do not expect.
const ODD_TEXTS: [&str; 8] = ["", " ", "A", "é", "\u{10ffff}", "a/", "a\0b", "0"];
/// Lengths around common limits of state machines.
const LONG: [usize; 4] = [255, 1024, 4097, 70_000];
/// Floats whose sums depend on the order of addition.
const FLOATS: [f64; 8] = [0.0, 1.0, 0.1, 0.2, 0.3, -0.7, 3.3, 1e9];
/// Used rarely, because one of them makes all sums equal.
const ODD_FLOATS: [f64; 5] = [-0.0, f64::INFINITY, f64::NEG_INFINITY, f64::NAN, f64::MIN_POSITIVE];

/// A source of values. Equal seeds and equal responses give equal values.
pub(super) struct Values {
    random: Xoshiro256PlusPlus,
    learned: BTreeMap<String, Vec<Value>>,
    /// Number of values that the current request may still get.
    left: usize,
    /// Probability, in percent, that a field of this request is set.
    density: u32,
}

impl Values {
    pub(super) fn new(seed: u64) -> Self {
        Self {
            random: Xoshiro256PlusPlus::seed_from_u64(seed),
            learned: BTreeMap::new(),
            left: 0,
            density: 100,
        }
    }

    /// Returns true with a probability of `percent`.
    pub(super) fn chance(&mut self, percent: u32) -> bool {
        self.random.random_range(0..100) < percent
    }

    /// A random number below `end`. `end` must not be 0.
    pub(super) fn below(&mut self, end: usize) -> usize {
        self.random.random_range(0..end.max(1))
    }

    /// A random element of `values`.
    pub(super) fn one_of<'a, T>(&mut self, values: &'a [T]) -> Option<&'a T> {
        values.get(self.below(values.len()))
    }

    /// A complete message.
    pub(super) fn message(&mut self, descriptor: &MessageDescriptor) -> DynamicMessage {
        self.left = VALUES_MAX;
        // Clients leave most options out, so most requests have few fields.
        self.density = self.one_of(&[25, 50, 75, 95]).copied().unwrap_or_default();
        self.message_at(descriptor, 0)
    }

    /// Gives a random field of a message another value.
    pub(super) fn change(&mut self, message: &mut DynamicMessage) {
        let fields: Vec<_> = message.descriptor().fields().collect();
        self.left = VALUES_MAX;
        if let Some(field) = self.one_of(&fields).cloned() {
            let value = self.field(&field, 0);
            set(message, &field, value);
        }
    }

    /// Remembers the values of a response.
    pub(super) fn learn(&mut self, message: &DynamicMessage) {
        for (field, value) in message.fields() {
            self.learn_value(field.name(), value);
        }
    }

    fn learn_value(&mut self, name: &str, value: &Value) {
        match value {
            Value::Message(message) => self.learn(message),
            Value::List(values) => {
                values.iter().take(LEARNED_MAX).for_each(|value| self.learn_value(name, value));
            }
            Value::Map(_) | Value::Bool(_) | Value::EnumNumber(_) => {}
            Value::String(text) if text.len() > LEARNED_BYTES_MAX => {}
            Value::Bytes(bytes) if bytes.len() > LEARNED_BYTES_MAX => {}
            value => {
                let place = self.random.random_range(0..LEARNED_MAX);
                let known = self.learned.entry(name.to_owned()).or_default();
                if known.contains(value) {
                    return;
                }
                match known.get_mut(place) {
                    Some(old) => *old = value.clone(),
                    None => known.push(value.clone()),
                }
            }
        }
    }

    fn message_at(&mut self, descriptor: &MessageDescriptor, depth: usize) -> DynamicMessage {
        let mut message = DynamicMessage::new(descriptor.clone());
        let groups: Vec<_> = descriptor.oneofs().filter(|group| !group.is_synthetic()).collect();
        for group in &groups {
            let fields: Vec<_> = group.fields().collect();
            if self.chance(90)
                && let Some(field) = self.one_of(&fields).cloned()
            {
                let value = self.field(&field, depth);
                set(&mut message, &field, value);
            }
        }
        for field in descriptor.fields() {
            let grouped = field.containing_oneof().is_some_and(|group| !group.is_synthetic());
            if !grouped && self.chance(self.density_of(&field)) {
                let value = self.field(&field, depth);
                set(&mut message, &field, value);
            }
        }
        message
    }

    /// The first field is usually a key or a name, so it is set more often.
    fn density_of(&self, field: &FieldDescriptor) -> u32 {
        if field.number() == 1 { 95 } else { self.density }
    }

    fn field(&mut self, field: &FieldDescriptor, depth: usize) -> Value {
        if field.is_map() {
            return Value::Map(self.map(field, depth));
        }
        if !field.is_list() {
            return self.value(field.name(), &field.kind(), depth);
        }
        let length = match self.below(100) {
            0..15 => 0,
            15..50 => 1,
            50..75 => 2,
            75..95 => 3 + self.below(3),
            _ => 6 + self.below(30),
        };
        let mut values = Vec::new();
        for _ in 0..length {
            if self.left == 0 {
                break;
            }
            values.push(self.value(field.name(), &field.kind(), depth));
        }
        Value::List(values)
    }

    /// A map with at most one entry: the order of more entries in the encoded bytes would
    /// differ between runs.
    fn map(&mut self, field: &FieldDescriptor, depth: usize) -> HashMap<MapKey, Value> {
        let Kind::Message(entry) = field.kind() else { return HashMap::new() };
        let key = self.value("key", &entry.map_entry_key_field().kind(), depth);
        let key = match key {
            Value::Bool(key) => MapKey::Bool(key),
            Value::I32(key) => MapKey::I32(key),
            Value::I64(key) => MapKey::I64(key),
            Value::U32(key) => MapKey::U32(key),
            Value::U64(key) => MapKey::U64(key),
            Value::String(key) => MapKey::String(key),
            _ => return HashMap::new(),
        };
        let value = self.value(field.name(), &entry.map_entry_value_field().kind(), depth);
        HashMap::from([(key, value)])
    }

    fn value(&mut self, name: &str, kind: &Kind, depth: usize) -> Value {
        self.left = self.left.saturating_sub(1);
        if let Kind::Message(descriptor) = kind {
            return Value::Message(match depth < DEPTH_MAX && self.left > 0 {
                true => self.message_at(descriptor, depth + 1),
                false => DynamicMessage::new(descriptor.clone()),
            });
        }
        if self.chance(30)
            && let Some(value) = self.recalled(name, kind)
        {
            return value;
        }
        match kind {
            Kind::Bool => Value::Bool(self.chance(50)),
            Kind::String => Value::String(self.text()),
            Kind::Bytes => Value::Bytes(self.text().into_bytes().into()),
            Kind::Double => Value::F64(self.float()),
            Kind::Float => Value::F32(self.float() as f32),
            Kind::Int32 | Kind::Sint32 | Kind::Sfixed32 => Value::I32(self.number() as i32),
            Kind::Int64 | Kind::Sint64 | Kind::Sfixed64 => Value::I64(self.number()),
            Kind::Uint32 | Kind::Fixed32 => Value::U32(self.number() as u32),
            Kind::Uint64 | Kind::Fixed64 => Value::U64(self.number() as u64),
            Kind::Enum(descriptor) => {
                let numbers: Vec<_> = descriptor.values().map(|value| value.number()).collect();
                let known = self.one_of(&numbers).copied().unwrap_or_default();
                Value::EnumNumber(if self.chance(5) { 1_000 } else { known })
            }
            Kind::Message(descriptor) => Value::Message(DynamicMessage::new(descriptor.clone())),
        }
    }

    /// A remembered value of a field whose name is `name` or ends in `_name`: for example,
    /// `page_token` gets a value of `next_page_token`.
    fn recalled(&mut self, name: &str, kind: &Kind) -> Option<Value> {
        let ending = format!("_{name}");
        let fits = |known: &str| known == name || known.ends_with(&ending);
        let mut known: Vec<_> = self
            .learned
            .iter()
            .filter(|(known, _)| fits(known))
            .flat_map(|(_, values)| values)
            .filter(|value| value.is_valid(kind))
            .cloned()
            .collect();
        match known.is_empty() {
            true => None,
            false => Some(known.swap_remove(self.below(known.len()))),
        }
    }

    fn text(&mut self) -> String {
        match self.below(100) {
            0..86 => self.one_of(&TEXTS).map(|text| (*text).to_owned()).unwrap_or_default(),
            86..94 => self.one_of(&ODD_TEXTS).map(|text| (*text).to_owned()).unwrap_or_default(),
            94..98 => format!("{:x}", self.random.random::<u32>()),
            _ => "x".repeat(self.one_of(&LONG).copied().unwrap_or_default()),
        }
    }

    fn number(&mut self) -> i64 {
        const EDGES: [i64; 6] =
            [i64::MAX, i64::MIN, i32::MAX as i64, i32::MIN as i64, u32::MAX as i64, -1];
        match self.below(100) {
            // Options are often zero.
            0..25 => 0,
            25..70 => self.random.random_range(0..5),
            70..90 => self.random.random_range(0..2_000),
            _ => self.one_of(&EDGES).copied().unwrap_or_default(),
        }
    }

    fn float(&mut self) -> f64 {
        let floats = if self.below(200) == 0 { &ODD_FLOATS[..] } else { &FLOATS };
        self.one_of(floats).copied().unwrap_or_default()
    }
}

/// Sets a field. Errors are ignored, because the generated values fit the descriptor.
fn set(message: &mut DynamicMessage, field: &FieldDescriptor, value: Value) {
    let _ = message.try_set_field(field, value);
}
