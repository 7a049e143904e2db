/*
 * cuda_stub.c: a libcuda.so.1 for tests on machines without a GPU. See README.md.
 *
 * It enforces the driver's rules and computes nothing. Device memory is host memory at addresses that the host cannot
 * access. Copies, fills, host functions, events and graphs are real; kernels do nothing. A stream is a queue whose
 * operations run as late as the rules allow: a wait runs only what it waits for. With CUDA_STUB_SEED, calls also run
 * a few random operations. A missing event or wait therefore gives wrong data in every run.
 *
 * One lock guards all state; it is released while a host function runs. Objects are never freed, because queues may
 * point to them; test processes are short.
 */
#define _GNU_SOURCE
#include <cuda.h>

#include <elf.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#define MAX_DEVICES 4
#define POISON 0xA5 /* what fresh device memory holds */
#define ALIGN_UP(n, to) (((n) + (to) - 1) / (to) * (to))

/* ------------------------------------------------------------------------------------------ settings */

struct card {
    int sm;
    const char *name;
    int processors, clock_khz, memory_khz, bus_bits, l2_bytes, memory_mb;
    int shared_optin, shared_sm, threads_sm, blocks_sm;
};

/* Sources: the cards' data sheets, and table "Technical Specifications per Compute Capability" of the CUDA guide. */
static const struct card CARDS[] = {
    {61, "NVIDIA GeForce GTX 1080 Ti", 28, 1582000, 5505000, 352, 2883584, 11264, 49152, 98304, 2048, 32},
    {70, "Tesla V100-PCIE-16GB", 80, 1380000, 877000, 4096, 6291456, 16384, 98304, 98304, 2048, 32},
    {75, "NVIDIA GeForce RTX 2080 Ti", 68, 1545000, 7000000, 352, 5767168, 11264, 65536, 65536, 1024, 16},
    {80, "NVIDIA A100-PCIE-40GB", 108, 1410000, 1215000, 5120, 41943040, 40960, 166912, 167936, 2048, 32},
    {86, "NVIDIA GeForce RTX 3090", 82, 1695000, 9751000, 384, 6291456, 24576, 101376, 102400, 1536, 16},
    {89, "NVIDIA GeForce RTX 4090", 128, 2520000, 10501000, 384, 75497472, 24564, 101376, 102400, 1536, 24},
    {90, "NVIDIA H100 PCIe", 114, 1755000, 1593000, 5120, 52428800, 81559, 232448, 233472, 2048, 32},
    {120, "NVIDIA GeForce RTX 5090", 170, 2407000, 14001000, 512, 100663296, 32607, 101376, 102400, 1536, 24},
};

static const struct card *card = &CARDS[5];
static size_t memory_total;
static int num_devices = 1, driver_version = CUDA_VERSION;
static uint64_t seed;
static double kernel_ms = 0.01;
static FILE *log_file;
static bool tracing;

/* ------------------------------------------------------------------------------------------ objects */

enum kind { FREED, CONTEXT, STREAM, EVENT, GRAPH, NODE, EXEC, MODULE, FUNCTION, NUM_KINDS };
static const char *const KIND_NAMES[] = {"freed", "contexts", "streams", "events", "graphs", "graph nodes",
                                         "graph execs", "modules", "functions"};

/* A handle encodes an index and is never used again, so that stale handles are recognised. */
struct object {
    enum kind kind;
    uintptr_t handle;
    struct context *ctx; /* NULL: of no context */
};

struct context {
    struct object object;
    int device, retained; /* retained: references of a primary context */
    bool primary;
    unsigned flags;
    CUresult error; /* sticky: every later call returns it */
    struct stream *legacy;
};

/* Memory that was allocated with the driver. */
struct span {
    uintptr_t base;
    size_t bytes;
    enum { DEVICE, PINNED } type;
    bool is_registered; /* PINNED memory of the host, which outlives its registration */
    uint8_t *host;      /* address of the bytes on the host */
    struct context *ctx;
    struct span *next;
};

enum op_kind { COPY, FILL, KERNEL, HOST, RECORD, WAIT, LAUNCH };

/* Work in a stream, or in a node of a graph. */
struct op {
    enum op_kind kind;
    struct op *next;
    uint64_t id;            /* position in its stream, from 1 */
    uintptr_t dst, src;     /* COPY, FILL */
    size_t bytes;
    unsigned value, size;   /* FILL: an element, and its bytes */
    void *staged;           /* COPY from pageable memory: its bytes at the time of the call */
    CUhostFn function;      /* HOST */
    void *data;
    struct function *kernel; /* KERNEL */
    struct event *event;    /* RECORD */
    struct exec *exec;      /* LAUNCH */
    struct stream *after;   /* runs no earlier than this stream's operation after_id */
    uint64_t after_id;
    CUresult fails;         /* injected: the context is lost when it runs */
};

struct nodes { struct node **items; size_t count; };

struct stream {
    struct object object;
    unsigned flags;
    int priority;
    bool is_legacy, busy; /* busy: one of its host functions runs, without the lock */
    struct op *head, *tail;
    uint64_t last, done; /* newest and newest finished operation */
    double ready_ms;     /* simulated clock: when its work so far is done */
    struct capture *capture;
    struct nodes depends; /* of the next captured operation */
    struct stream *next;
};

struct event {
    struct object object;
    unsigned flags;
    struct stream *stream; /* of the last record; NULL: never recorded */
    uint64_t id;
    double ms;
    uint64_t capture_id; /* recorded in this capture, behind these nodes */
    struct nodes nodes;
};

struct node { struct object object; struct graph *graph; struct op op; struct nodes depends; size_t index; };
struct graph { struct object object; struct nodes nodes; };
struct exec { struct object object; struct op *ops; size_t **depends, *num_depends, count; uint64_t flags;
              struct stream *last_stream; uint64_t last_id; };
struct capture { struct graph *graph; struct stream *origin; CUstreamCaptureMode mode; pthread_t thread;
                 uint64_t id; bool invalid; struct capture *next; };
struct module { struct object object; struct function *functions; };
struct function { struct object object; char *name; int shared_dynamic_max; uint64_t launches; struct function *next; };

static struct object **objects;
static size_t num_objects, room_objects;
static struct context *primaries[MAX_DEVICES];
static struct stream *streams;
static struct span *spans;
static struct capture *captures;
static size_t used_bytes[MAX_DEVICES];
static uint64_t next_capture_id = 1;
static bool initialized;
static bool forked; /* this process is the child of one that used the driver */

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t host_function_done = PTHREAD_COND_INITIALIZER;

static _Thread_local struct context *stack[64];
static _Thread_local int depth;
static _Thread_local bool in_host_function;
static _Thread_local CUresult next_op_fails, returned_instead;

#define HANDLE_BASE ((uintptr_t)0x7c0000000000)
#define HANDLE(o) ((void *)(o)->object.handle)

static void *make(enum kind kind, size_t bytes, struct context *ctx) {
    struct object *object = calloc(1, bytes);
    if (num_objects == room_objects) {
        room_objects = room_objects ? 2 * room_objects : 256;
        objects = realloc(objects, room_objects * sizeof *objects);
    }
    *object = (struct object){kind, HANDLE_BASE + 64 * num_objects, ctx};
    objects[num_objects++] = object;
    return object;
}

static void *find(const void *handle, enum kind kind) {
    uintptr_t index = ((uintptr_t)handle - HANDLE_BASE) / 64;
    if ((uintptr_t)handle < HANDLE_BASE || index >= num_objects || objects[index]->handle != (uintptr_t)handle)
        return NULL;
    return objects[index]->kind == kind ? objects[index] : NULL;
}

/* Mark an object as destroyed. Queues may still point to it, so it is not freed. */
static void unmake(void *object) { ((struct object *)object)->kind = FREED; }

/* ------------------------------------------------------------------------------------------ calls */

/* Calls of one API function. */
struct site { const char *name; uint64_t calls, errors; bool known; struct site *next; };
static struct site *sites;

enum needs { NOTHING = 0, INIT = 1, CTX = 2 | INIT, UNSAFE = 4 | CTX };

static const char *error_name(CUresult);

static void say(const char *format, ...) __attribute__((format(printf, 1, 2)));
static void say(const char *format, ...) {
    if (!log_file) return;
    va_list list;
    va_start(list, format);
    fprintf(log_file, "[cuda_stub %d] ", gettid());
    vfprintf(log_file, format, list);
    fputc('\n', log_file);
    fflush(log_file);
    va_end(list);
}

static uint64_t random_below(uint64_t limit) { /* xorshift */
    static uint64_t state;
    if (!state) state = seed * 0x9E3779B97F4A7C15u + 1;
    state ^= state << 13, state ^= state >> 7, state ^= state << 17;
    return state % limit;
}

/* CUDA_STUB_FAIL=NAME:N:CODE[,...]: the Nth call of NAME, with or without its _vN, returns CODE. A call that
 * destroys, frees or releases, or ends a capture, still does its work: the driver reports an older error there. */
static CUresult injected(const struct site *site) {
    for (const char *at = getenv("CUDA_STUB_FAIL"); at && *at; at = strchr(at, ',') ? strchr(at, ',') + 1 : NULL) {
        char name[64] = "";
        unsigned long number = 1, code = 999;
        if (sscanf(at, "%63[^:,]:%lu:%lu", name, &number, &code) < 1) continue;
        size_t length = strlen(name);
        bool same = !strncmp(site->name, name, length) && (!site->name[length] || !strncmp(site->name + length, "_v", 2));
        if (same && site->calls == number) return (CUresult)code;
    }
    return CUDA_SUCCESS;
}

static bool gives_back(const char *name) {
    static const char *const WORDS[] = {"Destroy", "Free", "Release", "Unload", "EndCapture", "Pop"};
    for (size_t i = 0; i < sizeof WORDS / sizeof *WORDS; i++)
        if (strstr(name, WORDS[i])) return true;
    return false;
}

static bool is_sticky(CUresult error) {
    return (error >= 700 && error <= 703) || error == 710 || (error >= 714 && error <= 719) || error == 214;
}

static struct context *current(void) { return depth ? stack[depth - 1] : NULL; }

static CUresult leave(struct site *site, CUresult result) {
    if (!result) result = returned_instead;
    returned_instead = CUDA_SUCCESS;
    if (result != CUDA_SUCCESS && result != CUDA_ERROR_NOT_READY) {
        site->errors++;
        say("%s -> %s", site->name, error_name(result));
    }
    pthread_mutex_unlock(&lock);
    return result;
}

static void wander(void);

/* Check for captures that forbid a call that may wait for the GPU, and invalidate them. */
static bool spoils_capture(void) {
    bool spoils = false;
    for (struct capture *c = captures; c; c = c->next) {
        bool mine = pthread_equal(c->thread, pthread_self()), relaxed = c->mode == CU_STREAM_CAPTURE_MODE_RELAXED;
        bool global = c->mode == CU_STREAM_CAPTURE_MODE_GLOBAL;
        if (!relaxed && (mine || global)) c->invalid = spoils = true;
    }
    return spoils;
}

/* Begin a call: take the lock and check the preconditions. */
static CUresult enter(struct site *site, enum needs needs) {
    pthread_mutex_lock(&lock);
    if (!site->known) *site = (struct site){site->name, 0, 0, true, sites}, sites = site;
    site->calls++;
    if (tracing) say("%s", site->name);
    CUresult result = injected(site);
    struct context *ctx = current();
    if (result && is_sticky(result)) next_op_fails = result, result = CUDA_SUCCESS;
    if (result && gives_back(site->name)) returned_instead = result, result = CUDA_SUCCESS;
    if (result) say("%s: injected", site->name);
    else if (in_host_function && (needs & CTX) == CTX) result = CUDA_ERROR_NOT_PERMITTED;
    else if (forked || ((needs & INIT) && !initialized)) result = CUDA_ERROR_NOT_INITIALIZED;
    else if ((needs & CTX) == CTX && !ctx) result = CUDA_ERROR_INVALID_CONTEXT;
    else if ((needs & CTX) == CTX && ctx->object.kind == FREED) result = CUDA_ERROR_CONTEXT_IS_DESTROYED;
    else if ((needs & CTX) == CTX && ctx->error) result = ctx->error;
    else if ((needs & UNSAFE) == UNSAFE && spoils_capture()) result = CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
    if (result) return leave(site, result);
    wander();
    return CUDA_SUCCESS;
}

/* Define an API call: preconditions, name, parameters, and the parameters' names. Its body holds the lock. */
#define API(needs, call, parameters, names)                          \
    static CUresult call##_locked parameters;                        \
    CUresult CUDAAPI call parameters {                               \
        static struct site site = {.name = __func__};                \
        CUresult entered = enter(&site, needs);                      \
        return entered ? entered : leave(&site, call##_locked names); \
    }                                                                \
    static CUresult call##_locked parameters
#define REQUIRE(condition, error) \
    if (!(condition)) return error

/* ------------------------------------------------------------------------------------------ memory */

static struct span *span_at(uintptr_t address) {
    for (struct span *s = spans; s; s = s->next)
        if (address >= s->base && address < s->base + s->bytes) return s;
    return NULL;
}

/* Check that all bytes lie in one span, or in none (pageable memory). */
static bool in_bounds(uintptr_t address, size_t bytes) {
    struct span *s = span_at(address);
    return !s || bytes <= s->base + s->bytes - address;
}

static bool is_device(uintptr_t address) {
    struct span *s = span_at(address);
    return s; /* unified addresses: pinned memory may stand for device memory */
}

static bool is_pageable(uintptr_t address) { return !span_at(address); }

static uint8_t *bytes_at(uintptr_t address) {
    struct span *s = span_at(address);
    return s ? s->host + (address - s->base) : (uint8_t *)address;
}

static CUresult allocate(struct context *ctx, size_t bytes, int type, uintptr_t *address) {
    if (!bytes) return CUDA_ERROR_INVALID_VALUE;
    size_t held = ALIGN_UP(bytes, 4096);
    if (type == DEVICE && used_bytes[ctx->device] + held > memory_total) return CUDA_ERROR_OUT_OF_MEMORY;
    uint8_t *host = mmap(NULL, held, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    /* The device address is mapped without access: a host that reads it crashes. */
    void *base = type == DEVICE ? mmap(NULL, held, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0) : host;
    if (host == MAP_FAILED || base == MAP_FAILED) return CUDA_ERROR_OUT_OF_MEMORY;
    if (bytes <= 64 << 20) memset(host, POISON, bytes);
    struct span *s = malloc(sizeof *s);
    *s = (struct span){(uintptr_t)base, bytes, type, false, host, ctx, spans};
    spans = s;
    if (type == DEVICE) used_bytes[ctx->device] += held;
    *address = s->base;
    return CUDA_SUCCESS;
}

/* The address stays reserved, so that a use after free crashes and no later allocation reuses it. */
static void forget(struct span *gone) {
    struct span **at = &spans;
    while (*at != gone) at = &(*at)->next;
    *at = gone->next;
    size_t held = ALIGN_UP(gone->bytes, 4096);
    if (gone->type == DEVICE) used_bytes[gone->ctx->device] -= held;
    if (gone->type == DEVICE) munmap(gone->host, held);
    else if (!gone->is_registered)
        mmap((void *)gone->base, held, PROT_NONE, MAP_FIXED | MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    free(gone);
}

/* ------------------------------------------------------------------------------------------ running */

static double now_ms(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1e3 + t.tv_nsec / 1e6;
}

static void lost(struct context *ctx, CUresult error, const char *why) {
    say("context lost: %s: %s", error_name(error), why);
    if (!ctx->error) ctx->error = error;
}

/* Run an operation and return its simulated time in ms. Host functions run without the lock. */
static double perform(struct context *ctx, struct op *op) {
    if (op->fails) lost(ctx, op->fails, "injected");
    if (ctx->error) return 0;
    switch (op->kind) {
    case COPY:
        if (!in_bounds(op->dst, op->bytes) || (!op->staged && !in_bounds(op->src, op->bytes))) lost(ctx, CUDA_ERROR_ILLEGAL_ADDRESS, "copy outside its allocation");
        else memmove(bytes_at(op->dst), op->staged ? op->staged : bytes_at(op->src), op->bytes);
        return op->bytes / 12e6; /* 12 GB/s */
    case FILL:
        for (size_t i = 0; i < op->bytes; i += op->size) memcpy(bytes_at(op->dst) + i, &op->value, op->size);
        return 0.002;
    case KERNEL:
        op->kernel->launches++;
        return kernel_ms;
    case HOST:
        pthread_mutex_unlock(&lock);
        in_host_function = true;
        op->function(op->data);
        in_host_function = false;
        pthread_mutex_lock(&lock);
        return 0;
    case LAUNCH: {
        struct exec *exec = op->exec;
        bool *did = calloc(exec->count + 1, 1);
        double *ends = calloc(exec->count + 1, sizeof *ends), end = 0;
        for (size_t left = exec->count; left--;) { /* any order that the edges allow; the first one without a seed */
            size_t chosen = exec->count, seen = 0;
            for (size_t i = 0; i < exec->count; i++) {
                bool ready = !did[i];
                for (size_t d = 0; ready && d < exec->num_depends[i]; d++) ready = did[exec->depends[i][d]];
                if (ready && (!seen++ || (seed && !random_below(seen)))) chosen = i;
                if (ready && !seed) break;
            }
            double start = 0;
            for (size_t d = 0; d < exec->num_depends[chosen]; d++)
                if (ends[exec->depends[chosen][d]] > start) start = ends[exec->depends[chosen][d]];
            ends[chosen] = start + perform(ctx, &exec->ops[chosen]);
            did[chosen] = true;
            if (ends[chosen] > end) end = ends[chosen];
        }
        free(did), free(ends);
        return end;
    }
    default: return 0;
    }
}

/* Run the operation at the head of a queue. */
static void step(struct stream *s) {
    struct op *op = s->head;
    s->busy = true;
    if (op->after && op->after->ready_ms > s->ready_ms) s->ready_ms = op->after->ready_ms;
    s->ready_ms += perform(s->object.ctx, op);
    if (op->kind == RECORD && op->event->stream == s && op->event->id == op->id) op->event->ms = s->ready_ms;
    s->head = op->next;
    if (!s->head) s->tail = NULL;
    s->done = op->id;
    s->busy = false;
    pthread_cond_broadcast(&host_function_done);
    free(op->staged);
    free(op);
}

/* Run a queue up to an operation, and other queues up to the operations that it waits for. */
static void run_until(struct stream *s, uint64_t id) {
    while (s->done < id) {
        if (s->busy) pthread_cond_wait(&host_function_done, &lock);
        else if (s->head->after && s->head->after->done < s->head->after_id) run_until(s->head->after, s->head->after_id);
        else step(s);
    }
}

static void run_all(struct context *ctx) {
    for (struct stream *s = streams; s; s = s->next)
        if (s->object.ctx == ctx) run_until(s, s->last);
}

/* With a seed: sometimes run a few operations of a random queue. */
static void wander(void) {
    if (!seed || in_host_function || random_below(4)) return;
    size_t count = 0;
    struct stream *chosen = NULL;
    for (struct stream *s = streams; s; s = s->next)
        if (s->head && !s->busy && !(s->head->after && s->head->after->done < s->head->after_id) && !random_below(++count))
            chosen = s;
    for (uint64_t steps = random_below(3) + 1; chosen && steps-- && chosen->head && !chosen->busy;) {
        if (chosen->head->after && chosen->head->after->done < chosen->head->after_id) break;
        step(chosen);
    }
}

/* ------------------------------------------------------------------------------------------ queueing */

static void add_nodes(struct nodes *to, const struct nodes *from) {
    for (size_t i = 0; i < from->count; i++) {
        bool has = false;
        for (size_t j = 0; j < to->count; j++) has |= to->items[j] == from->items[i];
        if (has) continue;
        to->items = realloc(to->items, (to->count + 1) * sizeof *to->items);
        to->items[to->count++] = from->items[i];
    }
}

static void set_nodes(struct nodes *to, const struct nodes *from) {
    struct nodes copy = {0};
    add_nodes(&copy, from);
    free(to->items);
    *to = copy;
}

static struct node *add_node(struct graph *graph, const struct op *op, const struct nodes *depends) {
    struct node *node = make(NODE, sizeof *node, NULL);
    node->graph = graph, node->op = *op, node->index = graph->nodes.count;
    add_nodes(&node->depends, depends);
    add_nodes(&graph->nodes, &(struct nodes){&node, 1});
    return node;
}

static struct stream *new_stream(struct context *ctx, unsigned flags, int priority) {
    struct stream *s = make(STREAM, sizeof *s, ctx);
    s->flags = flags, s->priority = priority, s->next = streams;
    return streams = s;
}

/* NULL and the two special values are the context's own streams. */
static struct stream *stream_of(CUstream handle) {
    static _Thread_local struct stream *own;
    struct context *ctx = current();
    if (!handle || handle == CU_STREAM_LEGACY) return ctx->legacy;
    if (handle == CU_STREAM_PER_THREAD) {
        if (!own || own->object.ctx != ctx || own->object.kind == FREED) own = new_stream(ctx, 0, 0);
        return own;
    }
    struct stream *s = find(handle, STREAM);
    return s && s->object.ctx == ctx ? s : NULL;
}

static void append(struct stream *s, const struct op *op) {
    struct op *copy = malloc(sizeof *copy);
    *copy = *op;
    copy->next = NULL, copy->id = ++s->last;
    copy->fails = next_op_fails, next_op_fails = CUDA_SUCCESS;
    if (s->ready_ms < now_ms()) s->ready_ms = now_ms();
    if (s->tail) s->tail->next = copy;
    else s->head = copy;
    s->tail = copy;
}

static void order_after(struct stream *s, struct stream *other) {
    if (other != s && other->done < other->last)
        append(s, &(struct op){.kind = WAIT, .after = other, .after_id = other->last});
}

/* Queue an operation in a stream, or add it to the graph if the stream is capturing. */
static CUresult push(struct stream *s, const struct op *op) {
    if (s->capture) {
        if (s->capture->invalid) return CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
        struct node *node = add_node(s->capture->graph, op, &s->depends);
        set_nodes(&s->depends, &(struct nodes){&node, 1});
        return CUDA_SUCCESS;
    }
    bool blocking = !(s->flags & CU_STREAM_NON_BLOCKING);
    for (struct stream *other = streams; other && s->is_legacy; other = other->next)
        if (other->object.ctx == s->object.ctx && other->capture && !(other->flags & CU_STREAM_NON_BLOCKING)) {
            other->capture->invalid = true; /* the legacy stream would have to wait for work that is not run */
            return CUDA_ERROR_STREAM_CAPTURE_IMPLICIT;
        }
    if (s->is_legacy)
        for (struct stream *other = streams; other; other = other->next) {
            if (other->object.ctx == s->object.ctx && !(other->flags & CU_STREAM_NON_BLOCKING)) order_after(s, other);
        }
    else if (blocking) order_after(s, s->object.ctx->legacy);
    append(s, op);
    return CUDA_SUCCESS;
}

/* ------------------------------------------------------------------------------------------ errors, devices */

/* Descriptions of errors; tables.c has all names. */
static const struct { CUresult code; const char *text; } TEXTS[] = {
    {CUDA_SUCCESS, "no error"}, {CUDA_ERROR_INVALID_VALUE, "invalid argument"}, {CUDA_ERROR_OUT_OF_MEMORY, "out of memory"},
    {CUDA_ERROR_NOT_INITIALIZED, "initialization error"}, {CUDA_ERROR_DEVICE_UNAVAILABLE, "CUDA-capable device(s) is/are busy or unavailable"},
    {CUDA_ERROR_NO_DEVICE, "no CUDA-capable device is detected"}, {CUDA_ERROR_INVALID_CONTEXT, "invalid device context"},
    {CUDA_ERROR_NO_BINARY_FOR_GPU, "no kernel image is available for execution on the device"}, {CUDA_ERROR_INVALID_HANDLE, "invalid resource handle"},
    {CUDA_ERROR_NOT_READY, "device not ready"}, {CUDA_ERROR_ILLEGAL_ADDRESS, "an illegal memory access was encountered"},
    {CUDA_ERROR_LAUNCH_TIMEOUT, "the launch timed out and was terminated"}, {CUDA_ERROR_CONTEXT_IS_DESTROYED, "context is destroyed"},
    {CUDA_ERROR_LAUNCH_FAILED, "unspecified launch failure"}, {CUDA_ERROR_ECC_UNCORRECTABLE, "uncorrectable ECC error encountered"},
    {CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, "operation not permitted when stream is capturing"},
    {CUDA_ERROR_STREAM_CAPTURE_INVALIDATED, "operation failed due to a previous error during capture"}, {CUDA_ERROR_UNKNOWN, "unknown error"},
};
extern const struct name { int code; const char *name; } cuda_stub_errors[];

static const char *error_name(CUresult code) {
    const struct name *e = cuda_stub_errors;
    while (e->name && e->code != (int)code) e++;
    return e->name;
}

CUresult CUDAAPI cuGetErrorName(CUresult error, const char **text) {
    return (*text = error_name(error)) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

CUresult CUDAAPI cuGetErrorString(CUresult error, const char **text) {
    *text = error_name(error);
    for (size_t i = 0; i < sizeof TEXTS / sizeof *TEXTS; i++)
        if (TEXTS[i].code == error) *text = TEXTS[i].text;
    return *text ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

API(NOTHING, cuInit, (unsigned flags), (flags)) {
    REQUIRE(!flags, CUDA_ERROR_INVALID_VALUE);
    REQUIRE(num_devices, CUDA_ERROR_NO_DEVICE);
    initialized = true;
    return CUDA_SUCCESS;
}

API(NOTHING, cuDriverGetVersion, (int *version), (version)) { *version = driver_version; return CUDA_SUCCESS; }
API(INIT, cuDeviceGetCount, (int *count), (count)) { *count = num_devices; return CUDA_SUCCESS; }

API(INIT, cuDeviceGet, (CUdevice *device, int ordinal), (device, ordinal)) {
    REQUIRE(ordinal >= 0 && ordinal < num_devices, CUDA_ERROR_INVALID_DEVICE);
    *device = ordinal;
    return CUDA_SUCCESS;
}

#define REQUIRE_DEVICE(device) REQUIRE((device) >= 0 && (device) < num_devices, CUDA_ERROR_INVALID_DEVICE)

API(INIT, cuDeviceGetName, (char *name, int length, CUdevice device), (name, length, device)) {
    REQUIRE_DEVICE(device);
    snprintf(name, length, "%s", card->name);
    return CUDA_SUCCESS;
}

API(INIT, cuDeviceTotalMem, (size_t *bytes, CUdevice device), (bytes, device)) {
    REQUIRE_DEVICE(device);
    *bytes = memory_total;
    return CUDA_SUCCESS;
}

API(INIT, cuDeviceGetPCIBusId, (char *text, int length, CUdevice device), (text, length, device)) {
    REQUIRE_DEVICE(device);
    snprintf(text, length, "0000:%02X:00.0", device + 1);
    return CUDA_SUCCESS;
}

static int attribute(CUdevice_attribute which, CUdevice device) {
    switch ((int)which) {
    case CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_BLOCK: case CU_DEVICE_ATTRIBUTE_MAX_BLOCK_DIM_X:
    case CU_DEVICE_ATTRIBUTE_MAX_BLOCK_DIM_Y: case CU_DEVICE_ATTRIBUTE_RESERVED_SHARED_MEMORY_PER_BLOCK: return 1024;
    case CU_DEVICE_ATTRIBUTE_MAX_BLOCK_DIM_Z: return 64;
    case CU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_X: case CU_DEVICE_ATTRIBUTE_MAX_PITCH: return 0x7fffffff;
    case CU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_Y: case CU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_Z: return 65535;
    case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK: return 49152;
    case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN: return card->shared_optin;
    case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_MULTIPROCESSOR: return card->shared_sm;
    case CU_DEVICE_ATTRIBUTE_TOTAL_CONSTANT_MEMORY: return 65536;
    case CU_DEVICE_ATTRIBUTE_WARP_SIZE: case CU_DEVICE_ATTRIBUTE_TEXTURE_PITCH_ALIGNMENT: return 32;
    case CU_DEVICE_ATTRIBUTE_MAX_REGISTERS_PER_BLOCK: case CU_DEVICE_ATTRIBUTE_MAX_REGISTERS_PER_MULTIPROCESSOR: return 65536;
    case CU_DEVICE_ATTRIBUTE_CLOCK_RATE: return card->clock_khz;
    case CU_DEVICE_ATTRIBUTE_TEXTURE_ALIGNMENT: case CU_DEVICE_ATTRIBUTE_SURFACE_ALIGNMENT: return 512;
    case CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT: return card->processors;
    case CU_DEVICE_ATTRIBUTE_MEMORY_CLOCK_RATE: return card->memory_khz;
    case CU_DEVICE_ATTRIBUTE_GLOBAL_MEMORY_BUS_WIDTH: return card->bus_bits;
    case CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE: return card->l2_bytes;
    case CU_DEVICE_ATTRIBUTE_MAX_PERSISTING_L2_CACHE_SIZE: return card->sm >= 80 ? card->l2_bytes * 3 / 4 : 0;
    case CU_DEVICE_ATTRIBUTE_MAX_ACCESS_POLICY_WINDOW_SIZE: return card->sm >= 80 ? 134213632 : 0;
    case CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_MULTIPROCESSOR: return card->threads_sm;
    case CU_DEVICE_ATTRIBUTE_MAX_BLOCKS_PER_MULTIPROCESSOR: return card->blocks_sm;
    case CU_DEVICE_ATTRIBUTE_ASYNC_ENGINE_COUNT: return 2;
    case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR: return card->sm / 10;
    case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR: return card->sm % 10;
    case CU_DEVICE_ATTRIBUTE_PCI_BUS_ID: return device + 1;
    case CU_DEVICE_ATTRIBUTE_SINGLE_TO_DOUBLE_PRECISION_PERF_RATIO: return 32;
    case CU_DEVICE_ATTRIBUTE_CLUSTER_LAUNCH: case CU_DEVICE_ATTRIBUTE_TENSOR_MAP_ACCESS_SUPPORTED: return card->sm >= 90;
    case CU_DEVICE_ATTRIBUTE_GPU_OVERLAP: case CU_DEVICE_ATTRIBUTE_CAN_MAP_HOST_MEMORY: case CU_DEVICE_ATTRIBUTE_CONCURRENT_KERNELS:
    case CU_DEVICE_ATTRIBUTE_UNIFIED_ADDRESSING: case CU_DEVICE_ATTRIBUTE_CAN_TEX2D_GATHER: case CU_DEVICE_ATTRIBUTE_STREAM_PRIORITIES_SUPPORTED:
    case CU_DEVICE_ATTRIBUTE_GLOBAL_L1_CACHE_SUPPORTED: case CU_DEVICE_ATTRIBUTE_LOCAL_L1_CACHE_SUPPORTED: case CU_DEVICE_ATTRIBUTE_MANAGED_MEMORY:
    case CU_DEVICE_ATTRIBUTE_CONCURRENT_MANAGED_ACCESS: case CU_DEVICE_ATTRIBUTE_COMPUTE_PREEMPTION_SUPPORTED:
    case CU_DEVICE_ATTRIBUTE_CAN_USE_HOST_POINTER_FOR_REGISTERED_MEM: case CU_DEVICE_ATTRIBUTE_COOPERATIVE_LAUNCH:
    case CU_DEVICE_ATTRIBUTE_HOST_REGISTER_SUPPORTED: case CU_DEVICE_ATTRIBUTE_READ_ONLY_HOST_REGISTER_SUPPORTED:
    case CU_DEVICE_ATTRIBUTE_MEM_SYNC_DOMAIN_COUNT: return 1;
    default: return which >= CU_DEVICE_ATTRIBUTE_MAXIMUM_TEXTURE1D_WIDTH && which <= CU_DEVICE_ATTRIBUTE_MAXIMUM_TEXTURE2D_MIPMAPPED_HEIGHT
                 && (which <= 29 || which == 42 || which == 43 || (which >= 45 && which <= 49) || which >= 52) ? 16384 : 0;
    }
}

API(INIT, cuDeviceGetAttribute, (int *value, CUdevice_attribute which, CUdevice device), (value, which, device)) {
    REQUIRE_DEVICE(device);
    REQUIRE(which > 0 && which < CU_DEVICE_ATTRIBUTE_MAX, CUDA_ERROR_INVALID_VALUE);
    *value = attribute(which, device);
    return CUDA_SUCCESS;
}

API(INIT, cuDeviceComputeCapability, (int *major, int *minor, CUdevice device), (major, minor, device)) {
    REQUIRE_DEVICE(device);
    *major = card->sm / 10, *minor = card->sm % 10;
    return CUDA_SUCCESS;
}

/* ------------------------------------------------------------------------------------------ contexts */

static struct context *new_context(int device, unsigned flags, bool primary) {
    struct context *ctx = make(CONTEXT, sizeof *ctx, NULL);
    ctx->device = device, ctx->flags = flags, ctx->primary = primary;
    ctx->legacy = new_stream(ctx, 0, 0);
    ctx->legacy->is_legacy = true;
    return ctx;
}

/* Destroy a context and everything in it, and log what was left. */
static void destroy_context(struct context *ctx) {
    run_all(ctx);
    size_t left[NUM_KINDS] = {0}, bytes = 0;
    for (size_t i = 0; i < num_objects; i++)
        if (objects[i]->ctx == ctx && objects[i]->kind != FREED && (struct stream *)objects[i] != ctx->legacy)
            left[objects[i]->kind]++, objects[i]->kind = FREED;
    for (struct span *s = spans, *next; s; s = next) {
        next = s->next;
        if (s->ctx == ctx) bytes += s->bytes, forget(s);
    }
    if (bytes) say("context destroyed with %zu bytes in it", bytes);
    for (int k = 1; k < NUM_KINDS; k++)
        if (left[k]) say("context destroyed with %zu %s in it", left[k], KIND_NAMES[k]);
    unmake(ctx->legacy);
    unmake(ctx);
}

API(INIT, cuDevicePrimaryCtxRetain, (CUcontext *ctx, CUdevice device), (ctx, device)) {
    REQUIRE_DEVICE(device);
    if (!primaries[device]) primaries[device] = new_context(device, 0, true);
    primaries[device]->retained++;
    *ctx = HANDLE(primaries[device]);
    return CUDA_SUCCESS;
}

API(INIT, cuDevicePrimaryCtxRelease, (CUdevice device), (device)) {
    REQUIRE_DEVICE(device);
    REQUIRE(primaries[device], CUDA_ERROR_INVALID_CONTEXT);
    if (!--primaries[device]->retained) {
        destroy_context(primaries[device]);
        primaries[device] = NULL;
    }
    return CUDA_SUCCESS;
}

API(INIT, cuDevicePrimaryCtxGetState, (CUdevice device, unsigned *flags, int *active), (device, flags, active)) {
    REQUIRE_DEVICE(device);
    *active = primaries[device] != NULL;
    *flags = primaries[device] ? primaries[device]->flags : 0;
    return CUDA_SUCCESS;
}

static CUresult push_context(struct context *ctx) {
    if (!ctx) return CUDA_ERROR_INVALID_CONTEXT;
    if (depth == sizeof stack / sizeof *stack) return CUDA_ERROR_INVALID_VALUE;
    stack[depth++] = ctx;
    return CUDA_SUCCESS;
}

API(INIT, cuCtxCreate_v2, (CUcontext *ctx, unsigned flags, CUdevice device), (ctx, flags, device)) {
    REQUIRE_DEVICE(device);
    struct context *made = new_context(device, flags, false);
    *ctx = HANDLE(made);
    return push_context(made);
}

CUresult CUDAAPI cuCtxCreate(CUcontext *ctx, CUctxCreateParams *params, unsigned flags, CUdevice device) {
    return params ? CUDA_ERROR_NOT_SUPPORTED : cuCtxCreate_v2(ctx, flags, device);
}

API(INIT, cuCtxDestroy, (CUcontext handle), (handle)) {
    struct context *ctx = find(handle, CONTEXT);
    REQUIRE(ctx && !ctx->primary, CUDA_ERROR_INVALID_CONTEXT);
    destroy_context(ctx);
    if (current() == ctx) depth--;
    return CUDA_SUCCESS;
}

API(INIT, cuCtxPushCurrent, (CUcontext handle), (handle)) { return push_context(find(handle, CONTEXT)); }

API(INIT, cuCtxPopCurrent, (CUcontext *handle), (handle)) {
    REQUIRE(depth, CUDA_ERROR_INVALID_CONTEXT);
    depth--;
    if (handle) *handle = HANDLE(stack[depth]);
    return CUDA_SUCCESS;
}

API(INIT, cuCtxSetCurrent, (CUcontext handle), (handle)) {
    struct context *ctx = find(handle, CONTEXT);
    REQUIRE(ctx || !handle, CUDA_ERROR_INVALID_CONTEXT);
    if (depth) depth--;
    return ctx ? push_context(ctx) : CUDA_SUCCESS;
}

API(INIT, cuCtxGetCurrent, (CUcontext *handle), (handle)) { *handle = current() ? HANDLE(current()) : NULL; return CUDA_SUCCESS; }
API(CTX, cuCtxGetDevice, (CUdevice *device), (device)) { *device = current()->device; return CUDA_SUCCESS; }

API(UNSAFE, cuCtxSynchronize, (void), ()) { run_all(current()); return current()->error; }

/* ------------------------------------------------------------------------------------------ memory calls */

API(CTX, cuMemGetInfo, (size_t *free_bytes, size_t *total), (free_bytes, total)) {
    *free_bytes = memory_total - used_bytes[current()->device], *total = memory_total;
    return CUDA_SUCCESS;
}

API(UNSAFE, cuMemAlloc, (CUdeviceptr *pointer, size_t bytes), (pointer, bytes)) {
    uintptr_t address = 0;
    CUresult result = allocate(current(), bytes, DEVICE, &address);
    if (!result) *pointer = address;
    return result;
}

static bool has_queued_work(const struct context *ctx) {
    for (struct stream *s = streams; s; s = s->next)
        if (s->object.ctx == ctx && s->done < s->last) return true;
    return false;
}

static CUresult release(uintptr_t address, int type, bool is_registered) {
    struct span *s = span_at(address);
    if (!s || s->base != address || (int)s->type != type || s->is_registered != is_registered)
        return is_registered ? CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED : CUDA_ERROR_INVALID_VALUE;
    if (has_queued_work(current())) say("memory is freed before queued work has run");
    run_all(current()); /* as the driver does before it frees memory */
    if (current()->error) return current()->error;
    forget(s);
    return CUDA_SUCCESS;
}

API(UNSAFE, cuMemFree, (CUdeviceptr pointer), (pointer)) { return pointer ? release(pointer, DEVICE, false) : CUDA_SUCCESS; }

API(UNSAFE, cuMemHostAlloc, (void **pointer, size_t bytes, unsigned flags), (pointer, bytes, flags)) {
    REQUIRE(flags < 8, CUDA_ERROR_INVALID_VALUE);
    uintptr_t address = 0;
    CUresult result = allocate(current(), bytes, PINNED, &address);
    if (!result) *pointer = (void *)address;
    return result;
}

API(UNSAFE, cuMemFreeHost, (void *pointer), (pointer)) { return release((uintptr_t)pointer, PINNED, false); }

API(UNSAFE, cuMemHostRegister, (void *pointer, size_t bytes, unsigned flags), (pointer, bytes, flags)) {
    REQUIRE(pointer && bytes && flags < 16, CUDA_ERROR_INVALID_VALUE);
    for (struct span *s = spans; s; s = s->next)
        if ((uintptr_t)pointer < s->base + s->bytes && s->base < (uintptr_t)pointer + bytes) return CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED;
    struct span *s = malloc(sizeof *s);
    *s = (struct span){(uintptr_t)pointer, bytes, PINNED, true, pointer, current(), spans};
    spans = s;
    return CUDA_SUCCESS;
}

API(UNSAFE, cuMemHostUnregister, (void *pointer), (pointer)) { return release((uintptr_t)pointer, PINNED, true); }

API(CTX, cuPointerGetAttribute, (void *data, CUpointer_attribute which, CUdeviceptr pointer), (data, which, pointer)) {
    struct span *s = span_at(pointer);
    REQUIRE(s && !(which == CU_POINTER_ATTRIBUTE_HOST_POINTER && s->type == DEVICE), CUDA_ERROR_INVALID_VALUE);
    switch ((int)which) {
    case CU_POINTER_ATTRIBUTE_CONTEXT: *(CUcontext *)data = HANDLE(s->ctx); break;
    case CU_POINTER_ATTRIBUTE_MEMORY_TYPE: *(unsigned *)data = s->type == DEVICE ? CU_MEMORYTYPE_DEVICE : CU_MEMORYTYPE_HOST; break;
    case CU_POINTER_ATTRIBUTE_DEVICE_POINTER: case CU_POINTER_ATTRIBUTE_HOST_POINTER: *(CUdeviceptr *)data = pointer; break;
    case CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL: *(int *)data = s->ctx->device; break;
    case CU_POINTER_ATTRIBUTE_RANGE_START_ADDR: *(CUdeviceptr *)data = s->base; break;
    case CU_POINTER_ATTRIBUTE_RANGE_SIZE: *(size_t *)data = s->bytes; break;
    default: return CUDA_ERROR_NOT_SUPPORTED;
    }
    return CUDA_SUCCESS;
}

/* ------------------------------------------------------------------------------------------ copies */

enum direction { H2D = 1, D2H, D2D, ANY };

/* Check a copy, queue it, and wait where the driver waits: for synchronous copies, and for pageable memory. */
static CUresult copy(uintptr_t dst, uintptr_t src, size_t bytes, enum direction direction, CUstream handle, bool async) {
    struct stream *s = stream_of(handle);
    struct op op = {.kind = COPY, .dst = dst, .src = src, .bytes = bytes};
    REQUIRE(s, CUDA_ERROR_INVALID_HANDLE);
    if (!bytes) return CUDA_SUCCESS;
    REQUIRE(dst && src && in_bounds(dst, bytes) && in_bounds(src, bytes), CUDA_ERROR_INVALID_VALUE);
    REQUIRE(is_device(dst) || direction == D2H || direction == ANY, CUDA_ERROR_INVALID_VALUE);
    REQUIRE(is_device(src) || direction == H2D || direction == ANY, CUDA_ERROR_INVALID_VALUE);
    REQUIRE(async || !spoils_capture(), CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED);
    if (!s->capture && is_pageable(src)) {
        run_until(s, s->last);
        op.staged = memcpy(malloc(bytes), (void *)src, bytes);
        if (async) say("asynchronous copy from pageable memory: it waits for its stream");
    }
    CUresult result = push(s, &op);
    if (result) return free(op.staged), result;
    if (!s->capture && (!async || is_pageable(dst))) run_until(s, s->last);
    return s->object.ctx->error;
}

#define COPY_CALL(name, direction, dst_type, src_type)                                                               \
    API(CTX, name, (dst_type dst, src_type src, size_t bytes), (dst, src, bytes)) {                                  \
        return copy((uintptr_t)dst, (uintptr_t)src, bytes, direction, NULL, false);                                  \
    }                                                                                                                \
    API(CTX, name##Async, (dst_type dst, src_type src, size_t bytes, CUstream stream), (dst, src, bytes, stream)) {  \
        return copy((uintptr_t)dst, (uintptr_t)src, bytes, direction, stream, true);                                 \
    }
COPY_CALL(cuMemcpy, ANY, CUdeviceptr, CUdeviceptr)
COPY_CALL(cuMemcpyHtoD, H2D, CUdeviceptr, const void *)
COPY_CALL(cuMemcpyDtoH, D2H, void *, CUdeviceptr)
COPY_CALL(cuMemcpyDtoD, D2D, CUdeviceptr, CUdeviceptr)

static CUresult fill(uintptr_t dst, unsigned value, unsigned size, size_t count, CUstream handle, bool async) {
    struct stream *s = stream_of(handle);
    REQUIRE(s, CUDA_ERROR_INVALID_HANDLE);
    if (!count) return CUDA_SUCCESS;
    REQUIRE(span_at(dst) && dst % size == 0 && in_bounds(dst, count * size), CUDA_ERROR_INVALID_VALUE);
    CUresult result = push(s, &(struct op){.kind = FILL, .dst = dst, .bytes = count * size, .value = value, .size = size});
    if (!result && !async) run_until(s, s->last);
    return result;
}

#define FILL_CALLS(bits, type)                                                                                                     \
    API(CTX, cuMemsetD##bits, (CUdeviceptr dst, type value, size_t count), (dst, value, count)) {                                  \
        return fill(dst, value, bits / 8, count, NULL, false);                                                                     \
    }                                                                                                                              \
    API(CTX, cuMemsetD##bits##Async, (CUdeviceptr dst, type value, size_t count, CUstream s), (dst, value, count, s)) {            \
        return fill(dst, value, bits / 8, count, s, true);                                                                         \
    }
FILL_CALLS(8, unsigned char)

/* ------------------------------------------------------------------------------------------ streams, events */

API(CTX, cuStreamCreateWithPriority, (CUstream *handle, unsigned flags, int priority), (handle, flags, priority)) {
    REQUIRE(flags <= CU_STREAM_NON_BLOCKING, CUDA_ERROR_INVALID_VALUE);
    *handle = HANDLE(new_stream(current(), flags, priority < -5 ? -5 : priority > 0 ? 0 : priority));
    return CUDA_SUCCESS;
}

CUresult CUDAAPI cuStreamCreate(CUstream *handle, unsigned flags) { return cuStreamCreateWithPriority(handle, flags, 0); }

/* Queued work still runs after the handle is destroyed. */
API(CTX, cuStreamDestroy, (CUstream handle), (handle)) {
    struct stream *s = find(handle, STREAM);
    REQUIRE(s && s->object.ctx == current() && !s->is_legacy, CUDA_ERROR_INVALID_HANDLE);
    if (s->capture) s->capture->invalid = true;
    unmake(s);
    return CUDA_SUCCESS;
}

API(CTX, cuStreamSynchronize, (CUstream handle), (handle)) {
    struct stream *s = stream_of(handle);
    REQUIRE(s, CUDA_ERROR_INVALID_HANDLE);
    if (s->capture) s->capture->invalid = true;
    REQUIRE(!s->capture && !spoils_capture(), CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED);
    if (s->is_legacy)
        for (struct stream *other = streams; other; other = other->next) {
            if (other->object.ctx == current() && !(other->flags & CU_STREAM_NON_BLOCKING)) run_until(other, other->last);
        }
    run_until(s, s->last);
    return current()->error;
}

API(CTX, cuStreamQuery, (CUstream handle), (handle)) {
    struct stream *s = stream_of(handle);
    REQUIRE(s, CUDA_ERROR_INVALID_HANDLE);
    if (s->capture) s->capture->invalid = true;
    REQUIRE(!s->capture && !spoils_capture(), CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED);
    if (s->done < s->last && !s->busy) run_until(s, s->done + 1); /* each query runs one operation */
    REQUIRE(!current()->error, current()->error);
    return s->done < s->last ? CUDA_ERROR_NOT_READY : CUDA_SUCCESS;
}

API(CTX, cuEventCreate, (CUevent *handle, unsigned flags), (handle, flags)) {
    REQUIRE(flags < 8 && !((flags & CU_EVENT_INTERPROCESS) && !(flags & CU_EVENT_DISABLE_TIMING)), CUDA_ERROR_INVALID_VALUE);
    struct event *e = make(EVENT, sizeof *e, current());
    e->flags = flags;
    *handle = HANDLE(e);
    return CUDA_SUCCESS;
}

API(CTX, cuEventDestroy, (CUevent handle), (handle)) {
    struct event *e = find(handle, EVENT);
    REQUIRE(e, CUDA_ERROR_INVALID_HANDLE);
    unmake(e);
    return CUDA_SUCCESS;
}

static struct capture *capture_of(uint64_t id) {
    for (struct capture *c = captures; c; c = c->next)
        if (c->id == id) return c;
    return NULL;
}

API(CTX, cuEventRecordWithFlags, (CUevent handle, CUstream stream, unsigned flags), (handle, stream, flags)) {
    struct event *e = find(handle, EVENT);
    struct stream *s = stream_of(stream);
    REQUIRE(e && s && e->object.ctx == s->object.ctx, CUDA_ERROR_INVALID_HANDLE);
    if (s->capture) { /* an event is not a node: it holds its predecessors */
        REQUIRE(!s->capture->invalid, CUDA_ERROR_STREAM_CAPTURE_INVALIDATED);
        e->capture_id = s->capture->id;
        set_nodes(&e->nodes, &s->depends);
        return CUDA_SUCCESS;
    }
    CUresult result = push(s, &(struct op){.kind = RECORD, .event = e});
    if (!result) e->stream = s, e->id = s->last, e->capture_id = 0;
    return result;
}

CUresult CUDAAPI cuEventRecord(CUevent event, CUstream stream) { return cuEventRecordWithFlags(event, stream, 0); }

static bool is_reached(const struct event *e) { return !e->stream || e->stream->done >= e->id; }

API(CTX, cuEventSynchronize, (CUevent handle), (handle)) {
    struct event *e = find(handle, EVENT);
    REQUIRE(e, CUDA_ERROR_INVALID_HANDLE);
    REQUIRE(!e->capture_id, CUDA_ERROR_CAPTURED_EVENT);
    REQUIRE(!spoils_capture(), CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED);
    if (e->stream) run_until(e->stream, e->id);
    return current()->error;
}

API(CTX, cuEventElapsedTime, (float *ms, CUevent start, CUevent end), (ms, start, end)) {
    struct event *a = find(start, EVENT), *b = find(end, EVENT);
    REQUIRE(a && b && a->stream && b->stream && !((a->flags | b->flags) & CU_EVENT_DISABLE_TIMING), CUDA_ERROR_INVALID_HANDLE);
    REQUIRE(!a->capture_id && !b->capture_id, CUDA_ERROR_CAPTURED_EVENT);
    REQUIRE(is_reached(a) && is_reached(b), CUDA_ERROR_NOT_READY);
    *ms = (float)(b->ms - a->ms);
    return CUDA_SUCCESS;
}

API(CTX, cuStreamWaitEvent, (CUstream stream, CUevent handle, unsigned flags), (stream, handle, flags)) {
    struct event *e = find(handle, EVENT);
    struct stream *s = stream_of(stream);
    REQUIRE(e && s, CUDA_ERROR_INVALID_HANDLE);
    REQUIRE(flags <= CU_EVENT_WAIT_EXTERNAL, CUDA_ERROR_INVALID_VALUE);
    if (e->capture_id) { /* the stream joins the event's capture */
        struct capture *c = capture_of(e->capture_id);
        REQUIRE(c, CUDA_ERROR_CAPTURED_EVENT); /* that capture is over */
        REQUIRE(!c->invalid, CUDA_ERROR_STREAM_CAPTURE_INVALIDATED);
        if (s->capture && s->capture != c) s->capture->invalid = c->invalid = true;
        REQUIRE(!s->capture || s->capture == c, CUDA_ERROR_STREAM_CAPTURE_MERGE);
        REQUIRE(!s->is_legacy, CUDA_ERROR_STREAM_CAPTURE_IMPLICIT);
        s->capture = c;
        add_nodes(&s->depends, &e->nodes);
        return CUDA_SUCCESS;
    }
    if (s->capture && e->stream) s->capture->invalid = true;
    REQUIRE(!s->capture || !e->stream, CUDA_ERROR_STREAM_CAPTURE_ISOLATION);
    if (is_reached(e)) return CUDA_SUCCESS;
    return push(s, &(struct op){.kind = WAIT, .after = e->stream, .after_id = e->id});
}

API(CTX, cuLaunchHostFunc, (CUstream stream, CUhostFn function, void *data), (stream, function, data)) {
    struct stream *s = stream_of(stream);
    REQUIRE(s && function, CUDA_ERROR_INVALID_HANDLE);
    return push(s, &(struct op){.kind = HOST, .function = function, .data = data});
}

/* ------------------------------------------------------------------------------------------ capture, graphs */

API(CTX, cuStreamBeginCapture, (CUstream handle, CUstreamCaptureMode mode), (handle, mode)) {
    struct stream *s = stream_of(handle);
    REQUIRE(s && mode <= CU_STREAM_CAPTURE_MODE_RELAXED, CUDA_ERROR_INVALID_VALUE);
    REQUIRE(!s->is_legacy, CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED);
    REQUIRE(!s->capture, CUDA_ERROR_ILLEGAL_STATE);
    struct capture *c = malloc(sizeof *c);
    *c = (struct capture){make(GRAPH, sizeof *c->graph, NULL), s, mode, pthread_self(), next_capture_id++, false, captures};
    captures = s->capture = c;
    set_nodes(&s->depends, &(struct nodes){0});
    return CUDA_SUCCESS;
}

static void mark_before(const struct node *node, bool *marks) {
    if (marks[node->index]) return;
    marks[node->index] = true;
    for (size_t i = 0; i < node->depends.count; i++) mark_before(node->depends.items[i], marks);
}

API(CTX, cuStreamEndCapture, (CUstream handle, CUgraph *graph), (handle, graph)) {
    struct stream *s = stream_of(handle);
    REQUIRE(s, CUDA_ERROR_INVALID_HANDLE);
    *graph = NULL;
    struct capture *c = s->capture;
    REQUIRE(c, CUDA_ERROR_ILLEGAL_STATE);
    REQUIRE(c->mode == CU_STREAM_CAPTURE_MODE_RELAXED || pthread_equal(c->thread, pthread_self()), CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD);
    if (c->origin != s || returned_instead) c->invalid = true;
    REQUIRE(c->origin == s, CUDA_ERROR_STREAM_CAPTURE_UNMATCHED);
    bool *marks = calloc(c->graph->nodes.count + 1, 1), unjoined = false;
    for (size_t i = 0; i < s->depends.count; i++) mark_before(s->depends.items[i], marks);
    for (size_t i = 0; i < c->graph->nodes.count; i++) unjoined |= !marks[i];
    free(marks);
    for (struct stream *other = streams; other; other = other->next)
        if (other->capture == c) other->capture = NULL, set_nodes(&other->depends, &(struct nodes){0});
    struct capture **at = &captures;
    while (*at != c) at = &(*at)->next;
    *at = c->next;
    CUresult result = c->invalid ? CUDA_ERROR_STREAM_CAPTURE_INVALIDATED : unjoined ? CUDA_ERROR_STREAM_CAPTURE_UNJOINED : CUDA_SUCCESS;
    if (result) {
        for (size_t i = 0; i < c->graph->nodes.count; i++) unmake(c->graph->nodes.items[i]);
        unmake(c->graph);
    } else *graph = HANDLE(c->graph);
    free(c);
    return result;
}

API(CTX, cuStreamIsCapturing, (CUstream handle, CUstreamCaptureStatus *status), (handle, status)) {
    struct stream *s = stream_of(handle);
    REQUIRE(s, CUDA_ERROR_INVALID_HANDLE);
    *status = !s->capture ? CU_STREAM_CAPTURE_STATUS_NONE : s->capture->invalid ? CU_STREAM_CAPTURE_STATUS_INVALIDATED : CU_STREAM_CAPTURE_STATUS_ACTIVE;
    return CUDA_SUCCESS;
}

API(INIT, cuGraphDestroy, (CUgraph handle), (handle)) {
    struct graph *g = find(handle, GRAPH);
    REQUIRE(g, CUDA_ERROR_INVALID_VALUE);
    for (size_t i = 0; i < g->nodes.count; i++) unmake(g->nodes.items[i]);
    unmake(g);
    return CUDA_SUCCESS;
}

/* Copy a graph's nodes into an executable one. */
static void snapshot(struct exec *exec, const struct graph *g) {
    exec->count = g->nodes.count;
    exec->ops = calloc(exec->count + 1, sizeof *exec->ops);
    exec->depends = calloc(exec->count + 1, sizeof *exec->depends);
    exec->num_depends = calloc(exec->count + 1, sizeof *exec->num_depends);
    for (size_t i = 0; i < exec->count; i++) {
        const struct node *n = g->nodes.items[i];
        exec->ops[i] = n->op;
        exec->num_depends[i] = n->depends.count;
        exec->depends[i] = calloc(n->depends.count + 1, sizeof **exec->depends);
        for (size_t d = 0; d < n->depends.count; d++) exec->depends[i][d] = n->depends.items[d]->index;
    }
}

API(CTX, cuGraphInstantiateWithFlags, (CUgraphExec *handle, CUgraph graph, unsigned long long flags), (handle, graph, flags)) {
    struct graph *g = find(graph, GRAPH);
    REQUIRE(g && flags < 16, CUDA_ERROR_INVALID_VALUE);
    struct exec *exec = make(EXEC, sizeof *exec, current());
    exec->flags = flags;
    snapshot(exec, g);
    *handle = HANDLE(exec);
    return CUDA_SUCCESS;
}

API(CTX, cuGraphLaunch, (CUgraphExec handle, CUstream stream), (handle, stream)) {
    struct exec *exec = find(handle, EXEC);
    struct stream *s = stream_of(stream);
    REQUIRE(exec && s, CUDA_ERROR_INVALID_VALUE);
    struct op op = {.kind = LAUNCH, .exec = exec};
    if (exec->last_stream != s) op.after = exec->last_stream, op.after_id = exec->last_id; /* launches of one graph are ordered */
    CUresult result = push(s, &op);
    if (!result && !s->capture) exec->last_stream = s, exec->last_id = s->last;
    return result;
}

API(INIT, cuGraphExecDestroy, (CUgraphExec handle), (handle)) {
    struct exec *exec = find(handle, EXEC);
    REQUIRE(exec, CUDA_ERROR_INVALID_VALUE);
    unmake(exec); /* what is queued still runs */
    return CUDA_SUCCESS;
}

/* ------------------------------------------------------------------------------------------ modules, kernels */

#define FATBIN_MAGIC 0xBA55ED50u
#define FATBIN_WRAPPER_MAGIC 0x466243B1u

static int elf_sm(const Elf64_Ehdr *e) { /* newer files keep it in the second byte of the flags */
    return e->e_ident[EI_ABIVERSION] >= 8 ? (e->e_flags >> 8) & 0xff : e->e_flags & 0xff;
}

/* Accept any fat binary or PTX, and cubins for this GPU. */
API(CTX, cuModuleLoadData, (CUmodule *module, const void *image), (module, image)) {
    REQUIRE(image, CUDA_ERROR_INVALID_VALUE);
    uint32_t magic = *(const uint32_t *)image;
    if (magic == FATBIN_WRAPPER_MAGIC) image = *(void *const *)((const char *)image + 8), magic = *(const uint32_t *)image;
    bool elf = !memcmp(image, ELFMAG, SELFMAG);
    REQUIRE(elf || magic == FATBIN_MAGIC || strstr(image, ".version"), CUDA_ERROR_INVALID_IMAGE);
    REQUIRE(!elf || (elf_sm(image) / 10 == card->sm / 10 && elf_sm(image) <= card->sm), CUDA_ERROR_NO_BINARY_FOR_GPU);
    *module = HANDLE((struct module *)make(MODULE, sizeof(struct module), current()));
    return CUDA_SUCCESS;
}

API(CTX, cuModuleGetFunction, (CUfunction *function, CUmodule module, const char *name), (function, module, name)) {
    struct module *m = find(module, MODULE);
    REQUIRE(m && name, CUDA_ERROR_INVALID_HANDLE);
    struct function *f = m->functions;
    while (f && strcmp(f->name, name)) f = f->next;
    if (!f) {
        f = make(FUNCTION, sizeof *f, current());
        f->name = strdup(name), f->shared_dynamic_max = 49152, f->next = m->functions, m->functions = f;
    }
    *function = HANDLE(f);
    return CUDA_SUCCESS;
}

API(CTX, cuFuncGetAttribute, (int *value, CUfunction_attribute which, CUfunction function), (value, which, function)) {
    struct function *f = find(function, FUNCTION);
    REQUIRE(f, CUDA_ERROR_INVALID_HANDLE);
    *value = which == CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK ? 1024
             : which == CU_FUNC_ATTRIBUTE_NUM_REGS ? 64
             : which == CU_FUNC_ATTRIBUTE_PTX_VERSION || which == CU_FUNC_ATTRIBUTE_BINARY_VERSION ? card->sm
             : which == CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES ? f->shared_dynamic_max : 0;
    return CUDA_SUCCESS;
}

API(CTX, cuFuncSetAttribute, (CUfunction function, CUfunction_attribute which, int value), (function, which, value)) {
    struct function *f = find(function, FUNCTION);
    REQUIRE(f, CUDA_ERROR_INVALID_HANDLE);
    if (which != CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES) return CUDA_SUCCESS;
    REQUIRE(value >= 0 && value <= card->shared_optin, CUDA_ERROR_INVALID_VALUE);
    f->shared_dynamic_max = value;
    return CUDA_SUCCESS;
}

API(CTX, cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags, (int *blocks, CUfunction function, int threads, size_t shared, unsigned flags), (blocks, function, threads, shared, flags)) {
    REQUIRE(find(function, FUNCTION) && threads > 0, CUDA_ERROR_INVALID_VALUE);
    int by_threads = card->threads_sm / ALIGN_UP(threads, 32), by_shared = shared ? card->shared_sm / (int)(shared + 1024) : card->blocks_sm;
    *blocks = by_threads < by_shared ? by_threads : by_shared;
    return CUDA_SUCCESS;
}

CUresult CUDAAPI cuOccupancyMaxActiveBlocksPerMultiprocessor(int *blocks, CUfunction function, int threads, size_t shared) {
    return cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(blocks, function, threads, shared, 0);
}

/* Check a launch; the kernel does nothing. */
API(CTX, cuLaunchKernel, (CUfunction function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz, unsigned shared,
                          CUstream stream, void **params, void **extra), (function, gx, gy, gz, bx, by, bz, shared, stream, params, extra)) {
    struct stream *s = stream_of(stream);
    struct function *f = find(function, FUNCTION);
    REQUIRE(s && f, CUDA_ERROR_INVALID_HANDLE);
    REQUIRE(gx && gy && gz && bx && by && bz && (uint64_t)bx * by * bz <= 1024 && (int)shared <= f->shared_dynamic_max, CUDA_ERROR_INVALID_VALUE);
    return push(s, &(struct op){.kind = KERNEL, .kernel = f});
}

/* ------------------------------------------------------------------------------------------ entry points */

/* tables.c, written by build.py: each function of cuda.h, the version that added it, and its symbol. */
extern const struct entry { const char *base, *symbol; int version; void *address; } cuda_stub_entries[];

/* Called by the functions of cuda.h that this stub lacks. */
CUresult cuda_stub_missing(const char *name) {
    pthread_mutex_lock(&lock);
    say("%s is not in this stub", name);
    pthread_mutex_unlock(&lock);
    return CUDA_ERROR_NOT_SUPPORTED;
}

CUresult CUDAAPI cuGetProcAddress_v2(const char *name, void **address, int version, cuuint64_t flags, CUdriverProcAddressQueryResult *status) {
    (void)flags;
    bool known = false;
    *address = NULL;
    for (const struct entry *e = cuda_stub_entries; e->base; e++) { /* sorted by version */
        if (strcmp(e->base, name)) continue;
        known = true;
        if (e->version <= version && e->version <= driver_version) *address = e->address;
    }
    if (status) *status = *address ? CU_GET_PROC_ADDRESS_SUCCESS : known ? CU_GET_PROC_ADDRESS_VERSION_NOT_SUFFICIENT : CU_GET_PROC_ADDRESS_SYMBOL_NOT_FOUND;
    if (!*address && tracing) say("cuGetProcAddress: no %s of version %d", name, version);
    return *address ? CUDA_SUCCESS : CUDA_ERROR_NOT_FOUND;
}

/*
 * NVIDIA's libcudart asks here for private tables of functions, one of which proves that the driver is NVIDIA's own.
 * The stub has no such table and does not forge the proof. Programs with libcudart built in, such as TensorRT and
 * cuBLAS, report that there is no usable GPU. Programs that load libcudart can be given cudart_stub.c.
 */
CUresult CUDAAPI cuGetExportTable(const void **table, const CUuuid *id) {
    say("cuGetExportTable: no table {%02x%02x%02x%02x...}", (uint8_t)id->bytes[0], (uint8_t)id->bytes[1], (uint8_t)id->bytes[2], (uint8_t)id->bytes[3]);
    *table = NULL;
    return CUDA_ERROR_NOT_FOUND;
}

/* Older symbols, for programs that were built with an older cuda.h. */
#undef cuGetProcAddress
#undef cuEventElapsedTime
#undef cuGraphInstantiate
CUresult CUDAAPI cuGetProcAddress(const char *name, void **address, int version, cuuint64_t flags) {
    return cuGetProcAddress_v2(name, address, version, flags, NULL);
}
CUresult CUDAAPI cuEventElapsedTime(float *ms, CUevent start, CUevent end) { return cuEventElapsedTime_v2(ms, start, end); }

/* ------------------------------------------------------------------------------------------ for tests */

/* Count the calls of a function, with or without its _vN. */
uint64_t cuda_stub_calls(const char *name) {
    uint64_t calls = 0;
    size_t length = strlen(name);
    pthread_mutex_lock(&lock);
    for (struct site *s = sites; s; s = s->next)
        if (!strncmp(s->name, name, length) && (!s->name[length] || !strncmp(s->name + length, "_v", 2))) calls += s->calls;
    pthread_mutex_unlock(&lock);
    return calls;
}

/* Count the operations that are queued and have not run. */
uint64_t cuda_stub_pending(void) {
    uint64_t pending = 0;
    pthread_mutex_lock(&lock);
    for (struct stream *s = streams; s; s = s->next) pending += s->last - s->done;
    pthread_mutex_unlock(&lock);
    return pending;
}

/* Count all operations that a stream was given; 0 is the legacy stream of the current context. */
uint64_t cuda_stub_queued(CUstream handle) {
    pthread_mutex_lock(&lock);
    struct stream *s = current() || handle ? stream_of(handle) : NULL;
    uint64_t queued = s ? s->last : 0;
    pthread_mutex_unlock(&lock);
    return queued;
}

/* Count the live objects of a kind, such as "streams", or the bytes of "device" or "pinned" memory. */
uint64_t cuda_stub_live(const char *what) {
    uint64_t live = 0;
    pthread_mutex_lock(&lock);
    for (size_t i = 0; i < num_objects; i++)
        live += !strcmp(KIND_NAMES[objects[i]->kind], what) && !(objects[i]->kind == STREAM && ((struct stream *)objects[i])->is_legacy);
    for (struct span *s = spans; s; s = s->next)
        if (!strcmp(what, s->type == DEVICE ? "device" : s->type == PINNED ? "pinned" : "other")) live += s->bytes;
    pthread_mutex_unlock(&lock);
    return live;
}

/* Get the host address of device memory, so that a host function can act as a kernel. */
void *cuda_stub_bytes(uintptr_t address) {
    pthread_mutex_lock(&lock);
    void *bytes = span_at(address) ? bytes_at(address) : NULL;
    pthread_mutex_unlock(&lock);
    return bytes;
}

static void report(void) {
    for (int d = 0; d < num_devices; d++)
        if (primaries[d]) fprintf(stderr, "[cuda_stub] left: primary context of GPU %d, retained %d times\n", d, primaries[d]->retained);
    for (int k = CONTEXT + 1; k < NODE; k++)
        if (cuda_stub_live(KIND_NAMES[k])) fprintf(stderr, "[cuda_stub] left: %lu %s\n", cuda_stub_live(KIND_NAMES[k]), KIND_NAMES[k]);
    for (int i = 0; i < 3; i++) {
        const char *what = (const char *[]){"device", "pinned", "graph execs"}[i];
        if (cuda_stub_live(what)) fprintf(stderr, "[cuda_stub] left: %lu %s%s\n", cuda_stub_live(what), i < 2 ? "bytes of " : "", what);
    }
    if (cuda_stub_pending()) fprintf(stderr, "[cuda_stub] left: %lu operations that never ran\n", cuda_stub_pending());
    for (struct site *s = sites; s; s = s->next)
        if (s->errors) fprintf(stderr, "[cuda_stub] %s failed %lu of %lu times\n", s->name, s->errors, s->calls);
}

static long number(const char *name, long otherwise) { return getenv(name) ? atol(getenv(name)) : otherwise; }

/* As in the real driver: a child of a process that called cuInit cannot use CUDA. */
static void after_fork(void) {
    forked = initialized;
    pthread_mutex_init(&lock, NULL);
}

/* Read the environment; may be called again before the driver is used. */
void cuda_stub_configure(void) {
    for (size_t i = 0; i < sizeof CARDS / sizeof *CARDS; i++)
        if (CARDS[i].sm == number("CUDA_STUB_SM", 89)) card = &CARDS[i];
    memory_total = (size_t)number("CUDA_STUB_MEM_MB", card->memory_mb) << 20;
    num_devices = number("CUDA_STUB_DEVICES", 1) < MAX_DEVICES ? number("CUDA_STUB_DEVICES", 1) : MAX_DEVICES;
    driver_version = number("CUDA_STUB_VERSION", CUDA_VERSION);
    seed = number("CUDA_STUB_SEED", 0);
    kernel_ms = number("CUDA_STUB_KERNEL_US", 10) / 1e3;
    tracing = number("CUDA_STUB_TRACE", 0);
    const char *log = getenv("CUDA_STUB_LOG");
    log_file = log ? !strcmp(log, "-") ? stderr : fopen(log, "a") : NULL;
}

__attribute__((constructor)) static void set_up(void) {
    cuda_stub_configure();
    pthread_atfork(NULL, NULL, after_fork);
    if (number("CUDA_STUB_REPORT", 0)) atexit(report);
}
