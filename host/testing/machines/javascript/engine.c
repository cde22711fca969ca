// QuickJS behind the contract conclave:fsm@0.1.0. machine.js answers calls, with text instead of
// bytes. This file implements the canonical ABI, whose records have the layout of C structs.

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "quickjs.h"

static const char source[] = {
#embed "machine.js"
    , 0};

typedef struct { const void *at; uint32_t count; } list;
typedef struct { uint8_t code; list message; } failure;
typedef struct { list response, events; uint8_t wakes; uint64_t wake_at_ms; } reply;

#define FSM(name) __attribute__((export_name("conclave:fsm/fsm@0.1.0#" name)))
#define HANDLE(name) __attribute__((import_module("[export]conclave:fsm/fsm@0.1.0"), import_name(name)))

HANDLE("[resource-new]snapshot-reader") uint32_t new_reader(void *reader);
HANDLE("[resource-new]restore-writer") uint32_t new_writer(void *writer);

__attribute__((export_name("cabi_realloc"))) void *cabi_realloc(void *old, size_t old_size, size_t align, size_t size) {
    void *at = realloc(old, size ? size : 1);
    if (!at) abort();
    return at;
}

static JSContext *js;

// The host restarts the stream of random bytes at every call, so this number is a function of the
// entry. QuickJS's own generator would depend on all earlier calls.
static JSValue chance(JSContext *js, JSValueConst self, int count, JSValueConst *arguments) {
    uint64_t bits;
    if (getentropy(&bits, sizeof bits)) abort();
    return JS_NewFloat64(js, (double)(bits >> 11) / (double)(1ull << 53));
}

static JSValue print(JSContext *js, JSValueConst self, int count, JSValueConst *arguments) {
    for (int at = 0; at < count; at++) {
        const char *text = JS_ToCString(js, arguments[at]);
        printf("%s%s", at ? " " : "", text ? text : "?");
        JS_FreeCString(js, text);
    }
    puts("");
    fflush(stdout);
    return JS_UNDEFINED;
}

// An error that machine.js does not return as a failure is a trap.
static void broken(JSValue exception) {
    const char *text = JS_ToCString(js, exception);
    fprintf(stderr, "%s\n", text ? text : "the state machine is broken");
    fflush(stderr);
    abort();
}

static void define(const char *object, const char *name, JSCFunction *function) {
    JSValue global = JS_GetGlobalObject(js), holder = JS_GetPropertyStr(js, global, object);
    if (JS_IsUndefined(holder)) {
        holder = JS_NewObject(js);
        JS_SetPropertyStr(js, global, object, JS_DupValue(js, holder));
    }
    JS_SetPropertyStr(js, holder, name, JS_NewCFunction(js, function, name, 0));
    JS_FreeValue(js, holder);
    JS_FreeValue(js, global);
}

static void start(void) {
    js = JS_NewContext(JS_NewRuntime());
    define("Math", "random", chance);
    define("console", "log", print);
    JSValue value = JS_Eval(js, source, sizeof source - 1, "machine.js", JS_EVAL_TYPE_GLOBAL);
    if (JS_IsException(value)) broken(JS_GetException(js));
    JS_FreeValue(js, value);
}

// Memory that the host reads before the next call.
static void *kept;

static list keep(const char *text, size_t size) {
    free(kept);
    kept = memcpy(cabi_realloc(NULL, 0, 1, size), text, size);
    return (list){kept, size};
}

static list keep_text(JSValue value) {
    size_t size;
    const char *text = JS_ToCStringLen(js, &size, value);
    if (!text) broken(JS_GetException(js));
    list answer = keep(text, size);
    JS_FreeCString(js, text);
    JS_FreeValue(js, value);
    return answer;
}

// Calls a global function of machine.js. Returns 1 and a failure for an error that has a code.
static int call(const char *name, int count, list *arguments, list *answer, failure *refused) {
    JSValue global = JS_GetGlobalObject(js), function = JS_GetPropertyStr(js, global, name), values[2];
    for (int at = 0; at < count; at++) values[at] = JS_NewStringLen(js, arguments[at].at, arguments[at].count);
    JSValue value = JS_Call(js, function, global, count, values);
    for (int at = 0; at < count; at++) JS_FreeValue(js, values[at]);
    JS_FreeValue(js, function);
    JS_FreeValue(js, global);
    if (!JS_IsException(value)) {
        *answer = keep_text(value);
        return 0;
    }
    JSValue exception = JS_GetException(js), code = JS_GetPropertyStr(js, exception, "code");
    int32_t number;
    if (JS_IsUndefined(code) || JS_ToInt32(js, &number, code)) broken(exception);
    refused->code = number;
    refused->message = keep_text(JS_GetPropertyStr(js, exception, "message"));
    JS_FreeValue(js, exception);
    return 1;
}

FSM("describe") void *describe(void) {
    static const uint32_t restores[] = {1};
    static const struct {
        list name, version; uint32_t state_version; list restores, descriptor_set;
    } description = {{"raffle", 6}, {"0.1.0", 5}, 1, {restores, 1}};
    if (!js) start();
    return (void *)&description;
}

FSM("apply") void *apply(uint64_t index, uint64_t time_ms, uint64_t seed, void *who, uint32_t who_size,
                         char *method, uint32_t method_size, char *request, uint32_t request_size) {
    static struct { uint8_t failed; union { reply reply; failure failure; }; } result;
    memset(&result, 0, sizeof result);
    list arguments[] = {{method, method_size}, {request, request_size}};
    failure refused;
    list answer;
    result.failed = call("apply", 2, arguments, &answer, &refused);
    if (result.failed) result.failure = refused;
    else result.reply.response = answer;
    free(who), free(method), free(request);
    return &result;
}

FSM("tick") void *tick(uint64_t index, uint64_t time_ms, uint64_t seed, void *who, uint32_t who_size) {
    static reply nothing;
    free(who);
    return &nothing;
}

typedef struct { uint8_t failed; union { list answer; failure failure; uint32_t handle; }; } result;

FSM("query") void *query(uint64_t index, uint64_t time_ms, uint64_t seed, void *who, uint32_t who_size,
                         char *method, uint32_t method_size, char *request, uint32_t request_size) {
    static result answered;
    list arguments[] = {{method, method_size}, {request, request_size}};
    failure refused;
    list answer;
    answered.failed = call("query", 2, arguments, &answer, &refused);
    if (answered.failed) answered.failure = refused;
    else answered.answer = answer;
    free(who), free(method), free(request);
    return &answered;
}

FSM("subscribe") void *subscribe(uint64_t index, uint64_t time_ms, uint64_t seed, void *who, uint32_t who_size,
                                 char *method, uint32_t method_size, char *request, uint32_t request_size) {
    static struct { uint8_t failed; failure failure; list rest; } refused = {1, {7, {"there are no events", 19}}};
    free(who), free(method), free(request);
    return &refused;
}

// A snapshot being read, or a restore being written.
typedef struct { char *at; uint32_t size, read; } state;

FSM("snapshot") uint32_t snapshot(void) {
    state *reader = calloc(1, sizeof *reader);
    list text;
    failure refused;
    if (call("save", 0, NULL, &text, &refused)) abort();
    reader->at = kept, reader->size = text.count, kept = NULL;
    return new_reader(reader);
}

FSM("[method]snapshot-reader.read") void *read_snapshot(state *reader, uint32_t bytes_max) {
    static list chunk;
    uint32_t left = reader->size - reader->read;
    chunk = keep(reader->at + reader->read, left < bytes_max ? left : bytes_max);
    reader->read += chunk.count;
    return &chunk;
}

FSM("restore") void *restore(uint32_t state_version) {
    static result begun;
    begun.handle = new_writer(calloc(1, sizeof(state)));
    return &begun;
}

FSM("[method]restore-writer.write") void *write_snapshot(state *writer, char *chunk, uint32_t size) {
    static result done;
    writer->at = cabi_realloc(writer->at, writer->size, 1, writer->size + size);
    memcpy(writer->at + writer->size, chunk, size);
    writer->size += size;
    free(chunk);
    return &done;
}

FSM("[method]restore-writer.finish") void *finish(state *writer) {
    static result done;
    list text = {writer->at, writer->size}, nothing;
    done.failed = call("load", 1, &text, &nothing, &done.failure);
    return &done;
}

FSM("[dtor]snapshot-reader") void drop_reader(state *reader) { free(reader->at), free(reader); }
FSM("[dtor]restore-writer") void drop_writer(state *writer) { free(writer->at), free(writer); }
