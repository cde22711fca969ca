//! The services of the scripted state machines, as their authors write them.

pub const KV: &str = r#"
    syntax = "proto3";
    package kv.v1;
    service KV {
      rpc Put(PutRequest) returns (PutResponse);
      rpc Get(GetRequest) returns (GetResponse) { option idempotency_level = NO_SIDE_EFFECTS; }
      rpc Watch(GetRequest) returns (stream GetResponse);
    }
    message PutRequest { string key = 1; bytes value = 2; double weight = 3; }
    message PutResponse { uint64 revision = 1; }
    message GetRequest { string key = 1; }
    message GetResponse { bytes value = 1; }
"#;

pub const COUNTER: &str = r#"
    syntax = "proto3";
    package counter.v1;
    service Counter { rpc Add(AddRequest) returns (AddResponse); }
    message AddRequest { int64 by = 1; }
    message AddResponse { int64 value = 1; }
"#;

/// Contains every kind of named symbol.
pub const EXTENDED: &str = r#"
    syntax = "proto2";
    package ext.v1;
    service Ext { rpc Do(Base) returns (Base); }
    message Base { extensions 100 to 200; enum Kind { PUT = 0; } }
    extend Base { optional string note = 100; }
    message Holder {
      extend Base { optional int32 inner = 101; }
      oneof choice { string text = 1; }
    }
    enum Top { TOP = 0; }
"#;
