//! The commands. Each checks everything before it changes anything.

use conclave_sdk::{Context, Failure, prost::Message as _};

use crate::{
    Flags,
    limits::{
        FLAGS_MAX, SEGMENT_SUBJECTS_MAX, SEGMENTS_MAX, TEXT_BYTES_MAX, check_definition,
        check_name, invalid, kind_name, within,
    },
    pb::{
        self, ArchiveRequest, ArchiveResponse, Definition, DeleteRequest, DeleteResponse,
        DeleteSegmentRequest, DeleteSegmentResponse, Flag, SetRequest, SetResponse,
        SetSegmentRequest, SetSegmentResponse, change::Kind,
    },
    state::Segment,
};

impl Flags {
    pub(crate) fn set(
        &mut self,
        context: &Context,
        request: SetRequest,
    ) -> Result<SetResponse, Failure> {
        let SetRequest { name, definition, expected_version, note } = request;
        let definition = definition.ok_or_else(|| invalid("the definition is not set"))?;
        check_name("the name", &name)?;
        check_definition(&definition)?;
        check_note(&note)?;
        let old = self.state.flag(&name);
        check_version(&name, expected_version, old.map(|flag| flag.version))?;
        if old.is_none() && self.state.flags().len() >= FLAGS_MAX {
            return Err(Failure::resource_exhausted(format!(
                "there are {FLAGS_MAX} flags; archive and delete some"
            )));
        }
        for rule in definition.rules.iter().filter(|rule| !rule.segment.is_empty()) {
            self.find_segment(&rule.segment)?;
        }
        let (kind, what) = match old {
            None => (Kind::Created, String::new()),
            Some(old) => (Kind::Changed, difference(old, &definition)?),
        };
        let version = self.state.last_change + 1;
        let flag = Flag { name, version, definition: Some(definition), archived: false };
        self.state.check_room(flag.encoded_len(), self.state.flag_bytes(&flag.name))?;

        let version = self.state.record(context, kind, &flag.name, what, note);
        self.state.insert_flag(flag);
        Ok(SetResponse { version })
    }

    pub(crate) fn archive(
        &mut self,
        context: &Context,
        request: ArchiveRequest,
    ) -> Result<ArchiveResponse, Failure> {
        let ArchiveRequest { name, expected_version, note } = request;
        check_note(&note)?;
        let mut flag = self.find(&name)?.clone();
        check_version(&name, expected_version, Some(flag.version))?;
        if flag.archived {
            return Err(Failure::failed_precondition(format!("{name} is archived already")));
        }
        flag.archived = true;
        flag.version = self.state.record(context, Kind::Archived, &name, String::new(), note);
        let version = flag.version;
        self.state.insert_flag(flag);
        Ok(ArchiveResponse { version })
    }

    pub(crate) fn delete(
        &mut self,
        context: &Context,
        request: DeleteRequest,
    ) -> Result<DeleteResponse, Failure> {
        let DeleteRequest { name, expected_version, note } = request;
        check_note(&note)?;
        let flag = self.find(&name)?;
        check_version(&name, expected_version, Some(flag.version))?;
        if !flag.archived {
            return Err(Failure::failed_precondition(format!(
                "{name} may still be in use: archive it first, and wait until it is clear that it is unused"
            )));
        }
        self.state.record(context, Kind::Deleted, &name, String::new(), note);
        self.state.remove_flag(&name);
        Ok(DeleteResponse {})
    }

    pub(crate) fn set_segment(
        &mut self,
        context: &Context,
        request: SetSegmentRequest,
    ) -> Result<SetSegmentResponse, Failure> {
        let SetSegmentRequest { name, subjects, expected_version, note } = request;
        check_name("the name", &name)?;
        check_note(&note)?;
        within("the segment", subjects.len(), SEGMENT_SUBJECTS_MAX, "subjects")?;
        for subject in &subjects {
            within("a subject", subject.len(), TEXT_BYTES_MAX, "bytes")?;
        }
        let old = self.state.segment(&name);
        check_version(&name, expected_version, old.map(|segment| segment.version))?;
        if old.is_none() && self.state.segments().len() >= SEGMENTS_MAX {
            return Err(Failure::resource_exhausted(format!("there are {SEGMENTS_MAX} segments")));
        }
        let what = format!("{} subjects", subjects.len());
        let version = self.state.last_change + 1;
        let segment = Segment { version, subjects: subjects.into_iter().collect() };
        let added = pb::Segment::encoded_len(&segment.message(&name));
        self.state.check_room(added, self.state.segment_bytes(&name))?;

        let version = self.state.record(context, Kind::SegmentSet, &name, what, note);
        self.state.insert_segment(&name, segment);
        Ok(SetSegmentResponse { version })
    }

    pub(crate) fn delete_segment(
        &mut self,
        context: &Context,
        request: DeleteSegmentRequest,
    ) -> Result<DeleteSegmentResponse, Failure> {
        let DeleteSegmentRequest { name, expected_version, note } = request;
        check_note(&note)?;
        let segment = self.find_segment(&name)?;
        check_version(&name, expected_version, Some(segment.version))?;
        let names_it = |flag: &&Flag| {
            let rules = flag.definition.iter().flat_map(|definition| &definition.rules);
            rules.into_iter().any(|rule| rule.segment == name)
        };
        if let Some(flag) = self.state.flags().values().find(names_it) {
            return Err(Failure::failed_precondition(format!(
                "a rule of {} names the segment {name}: change the rule first",
                flag.name
            )));
        }
        self.state.record(context, Kind::SegmentDeleted, &name, String::new(), note);
        self.state.remove_segment(&name);
        Ok(DeleteSegmentResponse {})
    }
}

fn check_note(note: &str) -> Result<(), Failure> {
    within("the note", note.len(), TEXT_BYTES_MAX, "bytes")
}

/// Fails if another caller has changed the object since.
fn check_version(name: &str, expected: u64, actual: Option<u64>) -> Result<(), Failure> {
    match actual {
        None if expected == 0 => Ok(()),
        Some(actual) if actual == expected => Ok(()),
        None => Err(Failure::aborted(format!("{name} is gone; to create it, expect version 0"))),
        Some(actual) => Err(Failure::aborted(format!(
            "{name} has version {actual}, not {expected}: read it again, then repeat the change"
        ))),
    }
}

/// Returns the names of a flag's changed parts. No values, because they may be secret.
fn difference(old: &Flag, new: &Definition) -> Result<String, Failure> {
    let Some(was) = &old.definition else { return Ok(String::new()) };
    let kind = |definition: &Definition| {
        definition.off.as_ref().and_then(|value| value.kind.as_ref()).map(kind_name)
    };
    if kind(was) != kind(new) {
        return Err(invalid(format!(
            "{} is a {}; programs that read it rely on that: create another flag for another type",
            old.name,
            kind(was).unwrap_or("nothing"),
        )));
    }
    if was.secret && !new.secret {
        return Err(invalid(format!(
            "{} is secret and stays so: otherwise its values would become visible in lists",
            old.name
        )));
    }
    let parts = [
        ("description", was.description != new.description),
        ("enabled", was.enabled != new.enabled),
        ("off", was.off != new.off),
        ("rules", was.rules != new.rules),
        ("secret", was.secret != new.secret),
        ("salt", was.salt != new.salt),
        ("archived", old.archived),
    ];
    let changed = parts.into_iter().filter(|(_, differs)| *differs).map(|(part, _)| part);
    Ok(changed.collect::<Vec<_>>().join(", "))
}
