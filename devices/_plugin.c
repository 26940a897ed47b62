/* A TCG plugin for qemu-user: how often every translated block runs between two marks, and what a data cache makes of it.

   Arguments (-plugin FILE,name=value,...):
     out=PATH               where the results go; required
     l1d=BYTES:WAYS:LINE    the first data cache; without it no memory access is looked at
     l2=BYTES:WAYS:LINE     the second; needs l1d, and the same line

   The guest talks to the plugin with a system call that has no effect, posix_fadvise(MAGIC, a, b, command):
     1 RUNTIME   [a, a + b) holds code of the TFLite runtime: counting goes on when it runs
     2 OUTSIDE   [a, a + b) holds code of Python: counting pauses when it runs
     3 BEGIN     a region begins; a is its label. It counts nothing before code of the runtime runs
     4 END       the region ends, and is written
     5 START     from here on code is looked at, and its memory accesses if a is not 0 and there is a cache; what ran
                 before, Python's start above all, ran at QEMU's own speed
   Code that is neither (the C and C++ libraries) counts for whoever called it. Only the thread that said BEGIN counts.

   Output, lines of text, numbers decimal unless said otherwise:
     edgeprune-blocks 1
     b INDEX PC WORDS       a block, before its first use: address (hex), and 8 hex digits per instruction word
     r LABEL LOADS STORES L1_READ L1_WRITE L2_READ L2_WRITE WRITEBACKS     a region that ended; the last five: misses of
                            each cache by reads and by writes, and dirty lines that left the last cache
     c INDEX COUNT          executions of a block in that region
     end                    the guest exited
   A memory access is one that QEMU makes: a load of a pair is two. A cache is LRU, write-back, write-allocate, and keeps
   its lines from region to region.

   QEMU's plugin interface, version 1 (QEMU 4.2 to 8.2). Distributions do not package its header; what is used of it is
   declared here. */

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- qemu-plugin.h */

#define EXPORT __attribute__((visibility("default")))

typedef uint64_t qemu_plugin_id_t;
typedef uint32_t qemu_plugin_meminfo_t;
struct qemu_plugin_tb;
struct qemu_plugin_insn;
struct qemu_info_t;
enum qemu_plugin_cb_flags { QEMU_PLUGIN_CB_NO_REGS };
enum qemu_plugin_mem_rw { QEMU_PLUGIN_MEM_R = 1, QEMU_PLUGIN_MEM_W, QEMU_PLUGIN_MEM_RW };

typedef void (*tb_trans_cb_t)(qemu_plugin_id_t id, struct qemu_plugin_tb *tb);
typedef void (*exec_cb_t)(unsigned int vcpu, void *data);
typedef void (*mem_cb_t)(unsigned int vcpu, qemu_plugin_meminfo_t info, uint64_t address, void *data);
typedef void (*syscall_cb_t)(qemu_plugin_id_t id, unsigned int vcpu, int64_t number, uint64_t a1, uint64_t a2,
                             uint64_t a3, uint64_t a4, uint64_t a5, uint64_t a6, uint64_t a7, uint64_t a8);
typedef void (*exit_cb_t)(qemu_plugin_id_t id, void *data);
typedef void (*simple_cb_t)(qemu_plugin_id_t id);

void qemu_plugin_register_vcpu_tb_trans_cb(qemu_plugin_id_t id, tb_trans_cb_t callback);
void qemu_plugin_register_vcpu_tb_exec_cb(struct qemu_plugin_tb *tb, exec_cb_t callback, enum qemu_plugin_cb_flags flags,
                                          void *data);
void qemu_plugin_register_vcpu_mem_cb(struct qemu_plugin_insn *insn, mem_cb_t callback, enum qemu_plugin_cb_flags flags,
                                      enum qemu_plugin_mem_rw which, void *data);
void qemu_plugin_register_vcpu_syscall_cb(qemu_plugin_id_t id, syscall_cb_t callback);
void qemu_plugin_register_atexit_cb(qemu_plugin_id_t id, exit_cb_t callback, void *data);
void qemu_plugin_reset(qemu_plugin_id_t id, simple_cb_t callback);
size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *tb);
uint64_t qemu_plugin_tb_vaddr(const struct qemu_plugin_tb *tb);
struct qemu_plugin_insn *qemu_plugin_tb_get_insn(const struct qemu_plugin_tb *tb, size_t index);
const void *qemu_plugin_insn_data(const struct qemu_plugin_insn *insn);
unsigned qemu_plugin_mem_size_shift(qemu_plugin_meminfo_t info);
_Bool qemu_plugin_mem_is_store(qemu_plugin_meminfo_t info);

EXPORT int qemu_plugin_version = 1;

/* ---- state */

#define FADVISE64 223 /* the number of the system call on aarch64 */
#define MAGIC 0x45445052
#define MOST_RANGES 256
#define LONGEST 1024 /* instructions of a block; QEMU makes none of more than 512 */
#define BUCKETS 65536

enum command { RUNTIME = 1, OUTSIDE, BEGIN, END, START };
enum kind { NEUTRAL = 0 };

struct block {
    uint64_t pc, hash, count;
    uint32_t length; /* instructions */
    int kind;
    int64_t index;   /* in the output; -1: not written yet */
    uint32_t *words;
    struct block *next;       /* in its bucket */
    struct block *next_block; /* in the list of all */
};

struct range {
    uint64_t start, size;
    int kind;
};

struct line {
    uint64_t tag; /* address / line size + 1; 0: empty */
    int dirty;
};

struct cache {
    uint64_t sets;
    unsigned ways, shift;
    struct line *lines; /* sets x ways, the latest use first */
    uint64_t read_misses, write_misses;
};

static FILE *output;
static struct block *buckets[BUCKETS], *all_blocks;
static struct range ranges[MOST_RANGES];
static int range_count, translating;
static int64_t written_blocks;
static struct cache l1, l2;
static uint64_t loads, stores, writebacks;
static int open_region, counting, watch_memory;
static unsigned owner;
static int64_t region_label;

/* ---- blocks */

static int kind_of(uint64_t pc) {
    for (int i = 0; i < range_count; i++)
        if (pc - ranges[i].start < ranges[i].size)
            return ranges[i].kind;
    return NEUTRAL;
}

static uint64_t hash_of(uint64_t pc, const uint32_t *words, uint32_t length) {
    uint64_t hash = 14695981039346656037u ^ pc;
    for (uint32_t i = 0; i < length; i++)
        hash = (hash ^ words[i]) * 1099511628211u;
    return hash ^ hash >> 32;
}

/* The same code at the same address is the same block, however often QEMU translates it. */
static struct block *find_block(uint64_t pc, const uint32_t *words, uint32_t length) {
    uint64_t hash = hash_of(pc, words, length);
    struct block **bucket = &buckets[hash % BUCKETS];
    for (struct block *block = *bucket; block; block = block->next)
        if (block->hash == hash && block->pc == pc && block->length == length
            && !memcmp(block->words, words, length * sizeof *words))
            return block;
    struct block *block = calloc(1, sizeof *block);
    if (!block || !(block->words = malloc(length * sizeof *words)))
        abort();
    memcpy(block->words, words, length * sizeof *words);
    block->pc = pc;
    block->hash = hash;
    block->length = length;
    block->index = -1;
    block->kind = kind_of(pc);
    block->next = *bucket;
    *bucket = block;
    block->next_block = all_blocks;
    all_blocks = block;
    return block;
}

/* ---- caches */

static int touch(struct cache *cache, uint64_t number, int store, struct line *evicted) {
    struct line *set = cache->lines + number % cache->sets * cache->ways, found = {number + 1, 0};
    unsigned at = 0;
    int hit = 0;
    while (at < cache->ways - 1 && set[at].tag != found.tag)
        at++;
    if (set[at].tag == found.tag) {
        hit = 1;
        found = set[at];
    } else {
        *evicted = set[at];
    }
    found.dirty |= store;
    memmove(set + 1, set, at * sizeof *set);
    set[0] = found;
    return hit;
}

static void to_memory(struct line line) {
    writebacks += line.tag && line.dirty;
}

static void access_line(uint64_t number, int store) {
    struct line evicted = {0, 0}, gone = {0, 0};
    if (touch(&l1, number, store, &evicted))
        return;
    *(store ? &l1.write_misses : &l1.read_misses) += 1;
    if (!l2.lines) {
        to_memory(evicted);
        return;
    }
    if (evicted.tag && evicted.dirty) {
        touch(&l2, evicted.tag - 1, 1, &gone);
        to_memory(gone);
        gone.tag = 0;
    }
    if (!touch(&l2, number, 0, &gone)) {
        *(store ? &l2.write_misses : &l2.read_misses) += 1;
        to_memory(gone);
    }
}

static void on_access(unsigned vcpu, qemu_plugin_meminfo_t info, uint64_t address, void *data) {
    (void)data;
    if (!counting || vcpu != owner)
        return;
    int store = qemu_plugin_mem_is_store(info);
    *(store ? &stores : &loads) += 1;
    uint64_t first = address >> l1.shift, last = (address + (1u << qemu_plugin_mem_size_shift(info)) - 1) >> l1.shift;
    access_line(first, store);
    if (last != first)
        access_line(last, store);
}

/* ---- QEMU's callbacks */

static void on_block(unsigned vcpu, void *data) {
    struct block *block = data;
    if (!open_region || vcpu != owner)
        return;
    if (block->kind != NEUTRAL)
        counting = block->kind == RUNTIME;
    if (counting)
        block->count++;
}

static void on_translation(qemu_plugin_id_t id, struct qemu_plugin_tb *tb) {
    (void)id;
    uint64_t pc = qemu_plugin_tb_vaddr(tb);
    uint32_t words[LONGEST], length = qemu_plugin_tb_n_insns(tb);
    if (length > LONGEST)
        abort();
    for (uint32_t i = 0; i < length; i++) {
        struct qemu_plugin_insn *insn = qemu_plugin_tb_get_insn(tb, i);
        memcpy(&words[i], qemu_plugin_insn_data(insn), sizeof words[i]);
        if (watch_memory && kind_of(pc) != OUTSIDE)
            qemu_plugin_register_vcpu_mem_cb(insn, on_access, QEMU_PLUGIN_CB_NO_REGS, QEMU_PLUGIN_MEM_RW, NULL);
    }
    while (__atomic_test_and_set(&translating, __ATOMIC_ACQUIRE)) /* guest threads translate at the same time */
        ;
    struct block *block = find_block(pc, words, length);
    __atomic_clear(&translating, __ATOMIC_RELEASE);
    qemu_plugin_register_vcpu_tb_exec_cb(tb, on_block, QEMU_PLUGIN_CB_NO_REGS, block);
}

static void add_range(uint64_t start, uint64_t size, int kind) {
    if (range_count == MOST_RANGES)
        abort();
    ranges[range_count++] = (struct range){start, size, kind};
    for (struct block *block = all_blocks; block; block = block->next_block)
        block->kind = kind_of(block->pc);
}

static void begin(unsigned vcpu, int64_t label) {
    for (struct block *block = all_blocks; block; block = block->next_block)
        block->count = 0;
    loads = stores = writebacks = 0;
    l1.read_misses = l1.write_misses = l2.read_misses = l2.write_misses = 0;
    region_label = label;
    owner = vcpu;
    counting = 0;
    open_region = 1;
}

static void describe(struct block *block) {
    block->index = written_blocks++;
    fprintf(output, "b %lld %llx ", (long long)block->index, (unsigned long long)block->pc);
    for (uint32_t i = 0; i < block->length; i++)
        fprintf(output, "%08x", (unsigned)block->words[i]);
    fputc('\n', output);
}

static void end(void) {
    open_region = counting = 0;
    for (struct block *block = all_blocks; block; block = block->next_block)
        if (block->count && block->index < 0)
            describe(block);
    uint64_t figures[] = {loads, stores, l1.read_misses, l1.write_misses, l2.read_misses, l2.write_misses, writebacks};
    fprintf(output, "r %lld", (long long)region_label);
    for (size_t i = 0; i < sizeof figures / sizeof *figures; i++)
        fprintf(output, " %llu", (unsigned long long)figures[i]);
    fputc('\n', output);
    for (struct block *block = all_blocks; block; block = block->next_block)
        if (block->count)
            fprintf(output, "c %lld %llu\n", (long long)block->index, (unsigned long long)block->count);
    fflush(output);
}

static void register_all(qemu_plugin_id_t id);

/* QEMU has thrown away what it has translated, and all that it was asked to call. */
static void look_at_code(qemu_plugin_id_t id) {
    register_all(id);
    qemu_plugin_register_vcpu_tb_trans_cb(id, on_translation);
}

static void on_syscall(qemu_plugin_id_t id, unsigned int vcpu, int64_t number, uint64_t a1, uint64_t a2, uint64_t a3,
                       uint64_t a4, uint64_t a5, uint64_t a6, uint64_t a7, uint64_t a8) {
    (void)a5, (void)a6, (void)a7, (void)a8;
    if (number != FADVISE64 || a1 != MAGIC)
        return;
    if (a4 == RUNTIME || a4 == OUTSIDE)
        add_range(a2, a3, (int)a4);
    else if (a4 == BEGIN)
        begin(vcpu, (int64_t)a2);
    else if (a4 == END && open_region)
        end();
    else if (a4 == START) {
        watch_memory = a2 && l1.lines;
        qemu_plugin_reset(id, look_at_code);
    }
}

static void on_exit_of_guest(qemu_plugin_id_t id, void *data) {
    (void)id, (void)data;
    fputs("end\n", output);
    fclose(output);
}

static void register_all(qemu_plugin_id_t id) {
    qemu_plugin_register_vcpu_syscall_cb(id, on_syscall);
    qemu_plugin_register_atexit_cb(id, on_exit_of_guest, NULL);
}

/* ---- arguments */

/* A number, and the place behind it; strtoull has another name in every C library. */
static const char *read_number(const char *text, uint64_t *number) {
    for (*number = 0; *text >= '0' && *text <= '9'; text++)
        *number = *number * 10 + (uint64_t)(*text - '0');
    return text;
}

static int make_cache(const char *text, struct cache *cache) {
    uint64_t bytes, ways, line;
    text = read_number(text, &bytes);
    text = read_number(text + (*text == ':'), &ways);
    text = read_number(text + (*text == ':'), &line);
    if (*text || !ways || !line || line & (line - 1) || !bytes || bytes % (ways * line))
        return -1;
    cache->ways = (unsigned)ways;
    cache->sets = bytes / (ways * line);
    while (1u << cache->shift < line)
        cache->shift++;
    cache->lines = calloc(cache->sets * ways, sizeof *cache->lines);
    return cache->lines ? 0 : -1;
}

static int read_argument(const char *argument) {
    if (!strncmp(argument, "out=", 4))
        return (output = fopen(argument + 4, "w")) ? 0 : -1;
    if (!strncmp(argument, "l1d=", 4))
        return make_cache(argument + 4, &l1);
    if (!strncmp(argument, "l2=", 3))
        return make_cache(argument + 3, &l2);
    return -1;
}

EXPORT int qemu_plugin_install(qemu_plugin_id_t id, const struct qemu_info_t *info, int count, char **arguments) {
    (void)info;
    for (int i = 0; i < count; i++)
        if (read_argument(arguments[i])) {
            fprintf(stderr, "edgeprune's plugin: '%s' cannot be used\n", arguments[i]);
            return -1;
        }
    if (!output || (l2.lines && (!l1.lines || l1.shift != l2.shift))) {
        fprintf(stderr, "edgeprune's plugin: out= is missing, or l2= does not fit l1d=\n");
        return -1;
    }
    fputs("edgeprune-blocks 1\n", output);
    register_all(id);
    return 0;
}
