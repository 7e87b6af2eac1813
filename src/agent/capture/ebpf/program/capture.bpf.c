// SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only
//
// Sees each request that changes a watched disk at the moment it is given to the device, and copies
// where and what into a ring. See docs/capture.md, "eBPF". Built by build.sh; users need no compiler.
//
// Owns: that a chunk's bit is set before anything else happens, and that whatever did not fit is
// counted. Does not own: what user space makes of it.

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef long long s64;

#define SEC(name) __attribute__((section(name), used))
#define CO_RE __attribute__((preserve_access_index))
#define ALWAYS static inline __attribute__((always_inline))
#define KIND(name, n) int (*name)[n]
#define TYPE(name, t) t *name

// Fields that are read, by name: the loader finds their places in the running kernel's BTF.
struct page { unsigned long flags; } CO_RE;
struct bio_vec { struct page *bv_page; u32 bv_len; u32 bv_offset; } CO_RE;
struct bvec_iter { u64 bi_sector; u32 bi_size; u32 bi_idx; u32 bi_bvec_done; } CO_RE;
struct bio { struct bio *bi_next; struct bvec_iter bi_iter; struct bio_vec *bi_io_vec; } CO_RE;
struct gendisk { int major; int first_minor; } CO_RE;
struct request_queue { struct gendisk *disk; } CO_RE;
struct request {
	struct request_queue *q;
	u32 cmd_flags;
	u32 __data_len;
	u64 __sector;
	struct bio *bio;
} CO_RE;

// Helpers of the kernel by their numbers (include/uapi/linux/bpf.h).
static void *(*const map_lookup)(void *, const void *) = (void *)1;
static long (*const map_update)(void *, const void *, const void *, u64) = (void *)2;
static long (*const map_delete)(void *, const void *) = (void *)3;
static long (*const probe_read)(void *, u32, const void *) = (void *)113;
static void *(*const ring_reserve)(void *, u64, u64) = (void *)131;
static void (*const ring_submit)(void *, u64) = (void *)132;
static void (*const ring_discard)(void *, u64) = (void *)133;
static u64 (*const ring_query)(void *, u64) = (void *)134;
static long (*const loop)(u32, void *, void *, u64) = (void *)181;

#define READ(to, from) probe_read(&(to), sizeof(to), __builtin_preserve_access_index(&(from)))
// A field of a copy, where the running kernel has it in that struct.
#define FIELD(copy, type, field) \
	(*(typeof(((type *)0)->field) *)((char *)&(copy) + __builtin_preserve_field_info(((type *)0)->field, 0)))

enum { WRITE = 1, ZERO = 2, UNKNOWN = 3, FAILED = 4, PASSED_BY = 5, MARKER = 6 };
enum { OP_WRITE = 1, OP_FLUSH = 2, OP_DISCARD = 3, OP_SECURE_ERASE = 5, OP_WRITE_ZEROES = 9,
	OP_DRV_OUT = 35 };
enum { ACTIVE = 0, WITH_DATA = 1, PAGES_AT = 2, STRUCTS_AT = 3, PROBED_DEVICE = 4, NOTHING = 7 };
enum { RING_WAITS = 0, NO_WAKEUP = 1, FORCE_WAKEUP = 2 }; // BPF_RB_AVAIL_DATA, BPF_RB_…
enum { NEXT_ID = 0, DROPPED = 1, FORGOTTEN = 2, UNFLOWN = 3, FAULTS = 4 };

#define RANGES 16
#define WORDS 512
#define PIECE_SMALL 4096
#define PIECE_MIDDLE 16384
#define PIECE_LARGE 65536
#define STEPS_MAX 32768
// Most that one loop takes (BPF_MAX_LOOPS), and loops for all words of a whole disk: one of 8 TiB has a bit
// for each 4 KiB at most.
#define WORD_STEPS_MAX (1 << 23)
#define WORD_LOOPS 4

// Head of every record: little-endian, 48 bytes; the payload of a WRITE stands behind it.
struct head {
	u64 id;
	u64 start; // byte of the captured disk
	u64 length; // of the whole request
	u64 at; // of this piece in the request
	u32 piece;
	u16 disk;
	u8 kind;
	u8 zero;
	u64 spare;
};

struct range { u64 start, end, first_chunk, disk; }; // sectors of the device
struct watched { u64 count; struct range range[RANGES]; };
// Of one request, as many as captured ranges are touched, by its address and those behind it (a request is
// aligned to more); the lowest bit of `id` says that there may be a next one.
struct flight { u64 disk, start, end, id, first_chunk; };

struct { KIND(type, 27); KIND(max_entries, 4096); } events SEC(".maps");
struct { KIND(type, 27); KIND(max_entries, 262144); } extents SEC(".maps");
struct { KIND(type, 2); TYPE(key, u32); u64 (*value)[WORDS]; KIND(max_entries, 2); } dirty SEC(".maps");
struct { KIND(type, 1); TYPE(key, u64); TYPE(value, struct flight); KIND(max_entries, 16384); } flying SEC(".maps");
struct { KIND(type, 1); TYPE(key, u32); TYPE(value, struct watched); KIND(max_entries, 256); } watched SEC(".maps");
struct { KIND(type, 2); TYPE(key, u32); u64 (*value)[8]; KIND(max_entries, 1); } control SEC(".maps");
struct { KIND(type, 2); TYPE(key, u32); u64 (*value)[8]; KIND(max_entries, 1); } counts SEC(".maps");
struct { KIND(type, 2); TYPE(key, u32); u64 (*value)[8]; KIND(max_entries, 1); } probed SEC(".maps");

// Set by the loader before the program is verified.
volatile const u64 chunk_shift = 16;
volatile const u64 dirty_pages = 1;
volatile const u64 wake_bytes = 1024; // a power of two

struct context { u64 args[1]; };

ALWAYS void count(u64 *counts, int which)
{
	__sync_fetch_and_add(&counts[which], 1);
}

struct bits { u64 next, end, base; };

static long set_word(u32 step, struct bits *bits)
{
	u64 first = bits->next, word = first / 64, until = (word + 1) * 64;
	u64 mask = ~0ULL << (first % 64);
	u32 key = bits->base + word / WORDS;
	if (until > bits->end) {
		mask &= ~0ULL >> ((until - bits->end) & 63);
		until = bits->end;
	}
	u64 *words = map_lookup(&dirty, &key);
	// Mostly set already: then the line stays with all CPUs.
	if (words && (words[word % WORDS] & mask) != mask)
		__sync_fetch_and_or(&words[word % WORDS], mask);
	bits->next = until;
	return until >= bits->end;
}

// Not static: such a function is verified once, and not again wherever it is called.
#define ONCE __attribute__((noinline))

// Sets the bits of a range, given in bytes of the captured disk.
ONCE int set_dirty(u64 active, u64 first_chunk, u64 start, u64 end)
{
	if (start >= end)
		return 0;
	struct bits bits = {
		.next = first_chunk + (start >> chunk_shift),
		.end = first_chunk + ((end - 1) >> chunk_shift) + 1,
		.base = (active & 1) * dirty_pages,
	};
	// Mostly one word: that is cheaper without a loop.
	if (set_word(0, &bits))
		return 0;
	// Unrolled: Linux 6.1 refuses a loop that is entered behind the call in it.
#pragma unroll
	for (u32 at = 0; at < WORD_LOOPS; at++) {
		if (bits.next < bits.end)
			loop(WORD_STEPS_MAX, set_word, &bits, 0);
	}
	return 0;
}

// The reader looks at the ring by itself every few milliseconds. Waking it for each record would cost the
// workload more than all the rest here, so it is woken only each time that so much more waits for it.
ALWAYS u64 wake(u64 bytes)
{
	return (ring_query(&events, RING_WAITS) & (wake_bytes - 1)) < bytes ? FORCE_WAKEUP : NO_WAKEUP;
}

// A record without payload; where there is no room for it, the second ring, else a count.
ONCE int tell(struct head *told)
{
	u32 key = 0;
	u64 *counted = map_lookup(&counts, &key);
	if (!counted || !told)
		return 0;
	struct head *head = ring_reserve(&events, sizeof(*head), 0);
	if (head) {
		*head = *told;
		ring_submit(head, wake(sizeof(*head)));
		return 0;
	}
	count(counted, DROPPED);
	head = ring_reserve(&extents, sizeof(*head), 0);
	if (!head) {
		count(counted, FORGOTTEN);
		return 0;
	}
	*head = *told;
	if (head->kind == ZERO)
		head->kind = UNKNOWN;
	ring_submit(head, NO_WAKEUP); // read whenever the first one is
	return 0;
}

struct walk {
	u64 id, start, length, done, pages_at, structs_at;
	struct bio *bio;
	struct bio_vec *vecs;
	u64 address; // of the rest of the present vector
	u32 vec_left, bio_left, index, skip;
	u16 disk;
	u8 failed;
};

ALWAYS int open_bio(struct walk *walk)
{
	struct bio *bio = walk->bio;
	if (!bio)
		return 0;
	struct bvec_iter iter;
	READ(iter, bio->bi_iter);
	walk->bio_left = FIELD(iter, struct bvec_iter, bi_size);
	walk->index = FIELD(iter, struct bvec_iter, bi_idx);
	walk->skip = FIELD(iter, struct bvec_iter, bi_bvec_done);
	READ(walk->vecs, bio->bi_io_vec);
	READ(walk->bio, bio->bi_next);
	walk->vec_left = 0;
	return 1;
}

ALWAYS void open_vec(struct walk *walk)
{
	struct bio_vec vec;
	probe_read(&vec, sizeof(vec), (void *)walk->vecs +
		(u64)walk->index * __builtin_preserve_type_info(*(struct bio_vec *)0, 1));
	struct page *page = FIELD(vec, struct bio_vec, bv_page);
	u32 length = FIELD(vec, struct bio_vec, bv_len), offset = FIELD(vec, struct bio_vec, bv_offset);
	u64 number = ((u64)page - walk->structs_at) / __builtin_preserve_type_info(*(struct page *)0, 1);
	walk->address = walk->pages_at + number * 4096 + offset + walk->skip;
	walk->vec_left = length > walk->skip ? length - walk->skip : 0;
	walk->skip = 0;
	walk->index++;
}

#define COPY(walk, class, bytes)                                                       \
	do {                                                                           \
		struct head *head = ring_reserve(&events, sizeof(*head) + class, 0);   \
		if (!head) {                                                           \
			walk->failed = DROPPED;                                        \
			return 1;                                                      \
		}                                                                      \
		if (probe_read(head + 1, bytes, (void *)walk->address)) {              \
			ring_discard(head, NO_WAKEUP);                                 \
			walk->failed = FAULTS;                                         \
			return 1;                                                      \
		}                                                                      \
		head->id = walk->id;                                                   \
		head->start = walk->start;                                             \
		head->length = walk->length;                                           \
		head->at = walk->done;                                                 \
		head->piece = bytes;                                                   \
		head->disk = walk->disk;                                               \
		head->kind = WRITE;                                                    \
		head->zero = 0;                                                        \
		head->spare = 0;                                                       \
		ring_submit(head, wake(sizeof(*head) + class));                        \
		walk->done += bytes;                                                   \
		walk->address += bytes;                                                \
		walk->vec_left -= bytes;                                               \
		walk->bio_left -= bytes;                                               \
	} while (0)

// One step: opens the next bio or vector where needed, and copies one piece.
static long copy_piece(u32 step, struct walk *walk)
{
	if (walk->done >= walk->length)
		return 1;
	if (walk->bio_left == 0 && !open_bio(walk))
		return 1;
	if (walk->bio_left == 0)
		return 0;
	if (walk->vec_left == 0)
		open_vec(walk);
	u32 bytes = walk->vec_left < walk->bio_left ? walk->vec_left : walk->bio_left;
	if (bytes == 0)
		return 0;
	if (bytes >= PIECE_LARGE) {
		COPY(walk, PIECE_LARGE, PIECE_LARGE);
	} else if (bytes >= PIECE_MIDDLE) {
		COPY(walk, PIECE_MIDDLE, PIECE_MIDDLE);
	} else {
		if (bytes > PIECE_SMALL)
			bytes = PIECE_SMALL;
		COPY(walk, PIECE_SMALL, bytes);
	}
	return 0;
}

// The part of a device's range that lies in a captured disk, as that disk's bytes.
ALWAYS int clip(struct range *range, u64 sector, u64 end, u64 *start, u64 *until)
{
	u64 from = sector > range->start ? sector : range->start;
	u64 to = end < range->end ? end : range->end;
	*start = (from - range->start) << 9;
	*until = (to - range->start) << 9;
	return from < to;
}

// One bio of a discard: such requests may join extents that do not touch.
struct zeroes { struct bio *bio; struct range *range; u64 *counts; u64 active, id, pass; };

static long zero_bio(u32 step, struct zeroes *zeroes)
{
	struct bio *bio = zeroes->bio;
	u64 sector, start, until;
	u32 bytes;
	if (!bio)
		return 1;
	READ(sector, bio->bi_iter.bi_sector);
	READ(bytes, bio->bi_iter.bi_size);
	READ(zeroes->bio, bio->bi_next);
	struct range range;
	if (probe_read(&range, sizeof(range), zeroes->range))
		return 1;
	if (!clip(&range, sector, sector + (bytes >> 9), &start, &until))
		return 0;
	if (zeroes->pass == 0) {
		set_dirty(zeroes->active, range.first_chunk, start, until);
	} else {
		struct head head = {
			.id = zeroes->id, .start = start, .length = until - start, .disk = range.disk, .kind = ZERO,
		};
		tell(&head);
	}
	return 0;
}

static __attribute__((noinline)) void see_zeroes(struct request *request, struct range *range, u64 active, u64 id)
{
	struct zeroes zeroes = { .range = range, .active = active, .id = id };
	READ(zeroes.bio, request->bio);
	loop(STEPS_MAX, zero_bio, &zeroes, 0);
	READ(zeroes.bio, request->bio);
	zeroes.pass = 1;
	loop(STEPS_MAX, zero_bio, &zeroes, 0);
}

// A frame of its own: inlined, it makes that of `issue` too large for the deepest calls from there. With all it calls
// a program has 512 bytes of stack in Linux 6.1 (later ones give more).
static __attribute__((noinline)) void see_write(struct request *request, u64 *counted, u64 *controlled, struct head *head)
{
	// Kernels before 6.7 verify the body of a loop as it runs the first time, and remove what does not run then. So
	// what it branches on and changes begins with zeros that the verifier does not know (one read each: values
	// that are known to be the same are known together).
	volatile u64 *zero = &controlled[NOTHING];
	struct walk walk = {
		.id = head->id, .start = head->start, .length = head->length, .disk = head->disk,
		.pages_at = controlled[PAGES_AT], .structs_at = controlled[STRUCTS_AT],
		.done = *zero, .vec_left = *zero, .bio_left = *zero, .index = *zero, .skip = *zero, .failed = *zero,
	};
	READ(walk.bio, request->bio);
	loop(STEPS_MAX, copy_piece, &walk, 0);
	if (walk.done == walk.length)
		return;
	count(counted, walk.failed == DROPPED ? DROPPED : FAULTS);
	head->kind = UNKNOWN;
	tell(head);
}

// Odd operations give something to the device; a flush gives nothing.
ALWAYS int gives(u32 op)
{
	return op & 1 && op != OP_FLUSH;
}

// A typed tracepoint may follow pointers by itself; one that leads nowhere reads as zero.
ALWAYS u32 device_of(struct request *request)
{
	struct gendisk *disk = request->q->disk;
	return disk->major << 20 | disk->first_minor;
}

ALWAYS int erases(u32 op)
{
	return op == OP_DISCARD || op == OP_SECURE_ERASE;
}

// Whether a request joins several bios: of a discard these are extents that need not touch.
ALWAYS int joins(struct request *request)
{
	struct bio *bio = 0, *next = 0;
	return !READ(bio, request->bio) && bio && !READ(next, bio->bi_next) && next;
}

// For the self-test: where the first page of a write to our own device is described.
ALWAYS void probe(struct request *request)
{
	u32 key = 0;
	struct bio *bio = 0;
	struct bio_vec *vecs = 0;
	struct page *page = 0;
	u32 offset = 0;
	u64 *found = map_lookup(&probed, &key);
	if (!found || READ(bio, request->bio) || !bio)
		return;
	READ(vecs, bio->bi_io_vec);
	READ(page, vecs->bv_page);
	READ(offset, vecs->bv_offset);
	found[2] = offset;
	found[1] = (u64)request;
	found[3] = __builtin_preserve_type_info(*(struct page *)0, 1);
	found[0] = (u64)page;
}

SEC("tp_btf/block_rq_issue") int issue(struct context *context)
{
	struct request *request = (void *)context->args[0];
	u32 op = request->cmd_flags & 0xff, key = 0;
	if (!gives(op))
		return 0;
	u32 device = device_of(request);
	struct watched *found = map_lookup(&watched, &device);
	if (!found)
		return 0;
	u64 *controlled = map_lookup(&control, &key), *counted = map_lookup(&counts, &key);
	if (!controlled || !counted)
		return 0;
	u64 sector = request->__sector;
	u32 bytes = request->__data_len;
	if (controlled[PROBED_DEVICE] == device)
		probe(request);
	u64 active = controlled[ACTIVE], id = __sync_fetch_and_add(&counted[NEXT_ID], 1);
	u64 end = sector + (bytes >> 9), pointer = (u64)request, several = found->count > 1;
	int discards = erases(op), many = discards && joins(request);
	int passed_by = op == OP_DRV_OUT;
	// As a number, which the verifier can count on from without following each sum by itself.
	if (several)
		probe_read(&pointer, sizeof(pointer), &context->args[0]);
	for (u32 at = 0; at < RANGES; at++) {
		if (at >= found->count)
			break;
		struct range *range = &found->range[at];
		struct head head = { .id = id, .disk = range->disk, .kind = UNKNOWN };
		u64 start, until;
		int inside = clip(range, sector, end, &start, &until);
		if (passed_by || many) {
			start = 0;
			until = (range->end - range->start) << 9;
		} else if (!inside) {
			continue;
		}
		if (!many)
			set_dirty(active, range->first_chunk, start, until);
		struct flight flight = {
			.disk = range->disk, .start = start, .end = until, .id = id << 1 | several,
			.first_chunk = range->first_chunk,
		};
		if (map_update(&flying, &pointer, &flight, 0))
			count(counted, UNFLOWN);
		if (several)
			pointer++;
		if (many) {
			see_zeroes(request, range, active, id);
			continue;
		}
		head.start = start;
		head.length = until - start;
		if (passed_by) {
			head.kind = PASSED_BY;
			tell(&head);
		} else if (op == OP_WRITE_ZEROES || discards) {
			head.kind = ZERO;
			tell(&head);
		} else if (op == OP_WRITE && controlled[WITH_DATA] && sector >= range->start && end <= range->end) {
			see_write(request, counted, controlled, &head);
		} else {
			tell(&head);
		}
	}
	return 0;
}

// What the device did with a request in one captured range.
ALWAYS void land(u64 active, struct flight *found, u64 *pointer, u32 error, int whole)
{
	if (error & 0xff) {
		// Its bit may be cleared by now: what it wrote is told already.
		set_dirty(active, found->first_chunk, found->start, found->end);
		struct head head = {
			.start = found->start, .length = found->end - found->start,
			.disk = found->disk, .kind = FAILED,
		};
		tell(&head);
	}
	if (whole)
		map_delete(&flying, pointer);
}

// The device failed a request whose flight is not known: whatever it touches is read again.
ONCE int fail(u32 device, u64 sector, u64 end, u32 whole)
{
	u32 key = 0;
	struct watched *found = map_lookup(&watched, &device);
	u64 *controlled = map_lookup(&control, &key);
	if (!found || !controlled)
		return 0;
	u64 active = controlled[ACTIVE];
	for (u32 at = 0; at < RANGES; at++) {
		if (at >= found->count)
			break;
		struct range *range = &found->range[at];
		u64 start, until;
		int inside = clip(range, sector, end, &start, &until);
		if (whole) {
			start = 0;
			until = (range->end - range->start) << 9;
		} else if (!inside) {
			continue;
		}
		set_dirty(active, range->first_chunk, start, until);
		struct head head = {
			.start = start, .length = until - start, .disk = range->disk, .kind = FAILED,
		};
		tell(&head);
	}
	return 0;
}

ALWAYS void fail_unknown(struct request *request, u32 op)
{
	u64 sector = request->__sector;
	u32 bytes = request->__data_len;
	u32 whole = op == OP_DRV_OUT || (erases(op) && joins(request));
	fail(device_of(request), sector, sector + (bytes >> 9), whole);
}

struct completed { u64 args[3]; };

SEC("tp_btf/block_rq_complete") int complete(struct completed *context)
{
	struct request *request = (void *)context->args[0];
	u64 pointer = (u64)request, next = 0;
	u32 error = context->args[1], bytes = context->args[2], key = 0, op = request->cmd_flags & 0xff;
	if (!gives(op))
		return 0;
	struct flight *found = map_lookup(&flying, &pointer);
	if (!found) {
		// Of a device that nobody watches, mostly; or its flight could not be noted.
		if (error & 0xff)
			fail_unknown(request, op);
		return 0;
	}
	u64 *controlled = map_lookup(&control, &key);
	if (!controlled)
		return 0;
	u64 active = controlled[ACTIVE];
	next = found->id & 1;
	land(active, found, &pointer, error, bytes >= request->__data_len);
	if (!next || probe_read(&pointer, sizeof(pointer), &context->args[0]))
		return 0;
	for (u32 at = 1; at < RANGES; at++) {
		pointer++;
		found = map_lookup(&flying, &pointer);
		if (!found)
			break;
		land(active, found, &pointer, error, bytes >= request->__data_len);
	}
	return 0;
}

// Where the kernel has it (5.18). Errors are few, so hardly a run of this one is ever left out, as one of `complete` may be:
// whoever completes a request may be interrupted by the completion of another.
SEC("tp_btf/block_rq_error") int failed(struct completed *context)
{
	struct request *request = (void *)context->args[0];
	u32 op = request->cmd_flags & 0xff;
	if (gives(op))
		fail_unknown(request, op);
	return 0;
}

// Never attached, only run: what was issued before stands before it in the ring.
SEC("raw_tp/marker") int marker(struct context *context)
{
	struct head *head = ring_reserve(&events, sizeof(*head), 0);
	if (!head)
		return 1;
	__builtin_memset(head, 0, sizeof(*head));
	head->id = context->args[0];
	head->kind = MARKER;
	ring_submit(head, FORCE_WAKEUP); // somebody waits for it
	return 0;
}

// Never attached, only run: looks for a known page, for each place at which the kernel may map all memory.
struct search { u64 page, structs_at, highest, offset, want[4], found; };

static long look(u32 step, struct search *search)
{
	u64 base = search->highest - ((u64)step << 30), seen[4];
	u64 number = (search->page - search->structs_at) / __builtin_preserve_type_info(*(struct page *)0, 1);
	if (probe_read(seen, sizeof(seen), (void *)(base + number * 4096 + search->offset)))
		return 0;
	if (seen[0] != search->want[0] || seen[1] != search->want[1] || seen[2] != search->want[2] ||
	    seen[3] != search->want[3])
		return 0;
	search->found = base;
	return 1;
}

struct asked { u64 args[9]; };

SEC("raw_tp/find") int find(struct asked *asked)
{
	struct search search = {
		.page = asked->args[0], .structs_at = asked->args[1], .highest = asked->args[2],
		.offset = asked->args[8],
		.want = { asked->args[4], asked->args[5], asked->args[6], asked->args[7] },
	};
	u32 key = 0;
	u64 *found = map_lookup(&probed, &key);
	if (!found)
		return 1;
	loop(asked->args[3], look, &search, 0);
	found[4] = search.found;
	return 0;
}

char license_of_program[] SEC("license") = "GPL";
