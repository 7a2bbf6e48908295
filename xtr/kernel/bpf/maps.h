/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The maps: what Go tells the programs and what they count. Package kernel mirrors every layout. */
#pragma once
#include "kern.h"

/* What to do with a packet: fib.Do. */
enum { DO_ENCAP = 1, DO_DELIVER, DO_HOLD, DO_NATIVE, DO_DROP, DO_MISS };

/* mapping.flags */
enum { M_TRANSIT = 1, M_MOVED = 2, M_COPY = 4, M_WATCH = 8, M_ARRIVING = 16 };

#define SLOTS 16

/* A mapping is not changed once a route points at it, but for its slots when an RLOC goes up or
 * down: every 16-bit slot is valid by itself. Number 0 is the answer for "no route". */
struct mapping {
	u8 act;
	u8 flags;
	u16 mtu; /* largest inner packet, 0 = conf.mtu */
	u32 hold;
	u32 ifindex; /* Deliver; 0 = none */
	u8 mac[6];
	u16 port;  /* number of the VM's port, 0 = none */
	u32 nonce; /* tells one Watch from the next */
	u16 slot[SLOTS];
	u64 pad;
};

/* What a route's prefix leads to. Replaced whole: the one switch when an EID moves. */
struct target {
	u32 mapping;
	u32 counter;
};

/* An RLOC: the template of the outer header and the way there. Number 0 is never used. */
struct rloc {
	u8 v6;
	u8 up;
	u16 mtu;     /* largest inner packet for the interface, 0 = unlimited */
	u32 ifindex; /* 0 = no way there */
	u32 csum;    /* sum of the IPv4 addresses as 16-bit words */
	u8 gpe;      /* says what is inside (RFC 9305): the receiver merges segments */
	u8 family;   /* of the next hop, 0 = let the kernel look it up */
	u16 pad;
	u32 hop[4];
	u32 src[4]; /* IPv4: the first word */
	u32 dst[4];
};

struct count {
	u64 packets;
	u64 bytes;
};

struct route_count {
	u64 packets;
	u64 bytes;
	u64 used; /* jiffies */
};

struct hold {
	u64 diverted;
	u64 reinjected;
};

/* A VM interface; its number is its place + 1. The place is ifindex % PORTS or one of the next. */
#define PORTS 4096
#define PORT_PROBES 8
enum { P_STACK = 1 };
struct port {
	u32 ifindex; /* 0 = free */
	u32 iid;
	u8 mac[6]; /* source address of the frames that we give to it */
	u8 flags;
	u8 pad;
	u64 base;   /* what the interface had counted before given began */
	u32 copies; /* Deliver routes with Copy to this port; not 0 for a moment longer */
	u32 mtu;    /* of the interface, 0 = unknown */
};

#define SELF 8
/* conf.flags. What is to be translated, if anything: a pool prefix is set, there are services with IPv4 or
 * IPv6 outside, some are more than one address; only global addresses may be behind the pool prefix. */
enum { C_ANCHOR = 1, C_POOL = 2, C_SERVICES4 = 4, C_SERVICES6 = 8, C_RANGES = 16, C_GLOBAL = 32 };
#define C_TRANSLATE (C_POOL | C_SERVICES4 | C_SERVICES6)
struct conf {
	u64 secret; /* marks XDP metadata as ours */
	u32 door;   /* interface index of lisp0 */
	u32 flags;
	u32 mtu; /* inner default */
	u32 cache_mask;
	u32 n4, n6;
	u32 miss_rate, event_rate; /* per CPU and 1024 jiffies */
	u32 hz;
	u32 ttl_rate;
	be32 self4[SELF];
	u32 self6[SELF][4];
	u32 pool[4]; /* RFC 6052: the rest of IPv4 as VMs see it */
	u32 pool_mask[4];
	u32 pool_len;
	u32 lowest6; /* larger IPv6 packets are not made of IPv4 packets that may be fragmented */
	u32 translate_rate;
	u32 pad;
};

union addr {
	u8 b[16];
	u32 w[4];
	u64 d[2];
};

/* tag: instance-ID, and the family in the top byte */
#define TAG4 0x04000000
#define TAG6 0x06000000

/* Services are looked up like EIDs, by tags of their own: by what is outside of one with IPv4 and IPv6
 * outside, and by what is inside. The lower half of the top byte is the family of the address. */
#define TAG_OUT4 0x44000000
#define TAG_OUT6 0x46000000
#define TAG_IN4 0x86000000
#define TAG_IN6 0xa6000000
#define TAG_SERVICE 0xc0000000
#define TAG_V6 0x02000000

struct hit {
	union addr addr; /* IPv4: in the last word */
	u32 tag;
	u32 gen;
	struct target to;
};

struct bucket {
	struct hit way[2];
};

struct key4 {
	u32 plen;
	be32 iid;
	be32 addr;
};

struct key6 {
	u32 plen;
	be32 iid;
	u32 addr[4];
};

struct event {
	u8 kind;
	u8 v6;
	u8 has_rloc;
	u8 rloc6; /* rloc is IPv6 */
	u32 iid;
	union addr eid; /* IPv4: in the last word */
	union addr rloc;
	u32 ifindex;
	u8 mac[6];
	u8 pad[6];
};

struct limit_key {
	u32 kind;
	u32 tag;
	u32 nonce;
	u32 pad;
	union addr eid;
	union addr rloc;
};

struct bucket_of_tokens {
	u64 filled; /* jiffies */
	u64 tokens; /* 1024ths */
};

/* A service: addresses outside and the EIDs inside, and which bits of an address stay as they are. It is not
 * changed while it can be found. Number 0 is the answer for "no service". IPv4 in the last word. */
enum { S_EXPLICIT = 1, S_ONE_TO_ONE, S_NEUTRAL };
struct service {
	u32 outside[4], inside[4], keep[4];
	u8 kind;
	u8 bits; /* that stay */
	u8 word; /* S_NEUTRAL: the first 16-bit word that may make up for the prefix */
	u8 pad;
	u16 in, out; /* S_NEUTRAL: what is added to that word (RFC 6296 section 3) */
	u64 pad2;
};

/* What a service has translated, by direction; bytes of the packets outside. */
struct service_count {
	u64 in_packets, in_bytes;
	u64 out_packets, out_bytes;
};

struct service_key {
	u32 tag;
	u32 addr[4];
};

struct service_range {
	u32 plen;
	u32 tag;
	u32 addr[4]; /* IPv4 in the first word */
};

#define MAP(name, t, k, v, n)                                                                      \
	struct {                                                                                   \
		__uint(type, t);                                                                   \
		__type(key, k);                                                                    \
		__type(value, v);                                                                  \
		__uint(max_entries, n);                                                            \
	} name SEC(".maps")

#define TRIE(name, k, v, n)                                                                        \
	struct {                                                                                   \
		__uint(type, BPF_MAP_TYPE_LPM_TRIE);                                               \
		__type(key, k);                                                                    \
		__type(value, v);                                                                  \
		__uint(max_entries, n);                                                            \
		__uint(map_flags, BPF_F_NO_PREALLOC);                                              \
	} name SEC(".maps")

/* An array that begins at a page, so that values of 64 bytes lie in one line of the CPU's cache each. */
#define LINES(name, v, n)                                                                          \
	struct {                                                                                   \
		__uint(type, BPF_MAP_TYPE_ARRAY);                                                  \
		__type(key, u32);                                                                  \
		__type(value, v);                                                                  \
		__uint(max_entries, n);                                                            \
		__uint(map_flags, BPF_F_MMAPABLE);                                                 \
	} name SEC(".maps")

/* Sizes marked * are set by Go from the configuration. */
TRIE(eid4, struct key4, struct target, 65536);                     /* * */
TRIE(eid6, struct key6, struct target, 65536);                     /* * */
LINES(mappings, struct mapping, 16384);                            /* * */
LINES(rlocs, struct rloc, 4096);
MAP(dcache, BPF_MAP_TYPE_PERCPU_ARRAY, u32, struct bucket, 8192);  /* * */
TRIE(own4, struct key4, u32, 4096);
TRIE(own6, struct key6, u32, 4096);
TRIE(allow4, struct key4, u32, 4096);
TRIE(allow6, struct key6, u32, 4096);
MAP(conf, BPF_MAP_TYPE_ARRAY, u32, struct conf, 1);
MAP(ports, BPF_MAP_TYPE_ARRAY, u32, struct port, PORTS);
/* Packets given to each port's interface. */
MAP(given, BPF_MAP_TYPE_ARRAY, u32, u64, PORTS);
MAP(holds, BPF_MAP_TYPE_ARRAY, u32, struct hold, 4096);
/* Packets of a hold that will not come back; below zero for those that come without having been
 * diverted. Only Go writes here. */
MAP(lost, BPF_MAP_TYPE_ARRAY, u32, u64, 4096);
MAP(limits, BPF_MAP_TYPE_LRU_HASH, struct limit_key, u64, 4096);

/* All locators of the mappings that have more than one: for Go, when it starts anew. */
struct locator {
	u16 rloc; /* 0 = none */
	u8 rank, weight;
};
struct locators {
	struct locator of[SLOTS];
};
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__type(key, u32);
	__type(value, struct locators);
	__uint(max_entries, 16384); /* * */
	__uint(map_flags, BPF_F_NO_PREALLOC);
} backups SEC(".maps");

/* Generations of the destination cache. A host route changes only that of its address's hash, a
 * shorter prefix the last one, which counts for all. */
#define GENS 1024
MAP(gens, BPF_MAP_TYPE_ARRAY, u32, u32, GENS + 1);

/* Counters of the routes, in chunks that are made when they are first needed. */
#define CHUNK_BITS 10
#define CHUNK (1 << CHUNK_BITS)
struct chunk {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(key_size, sizeof(u32));
	__uint(value_size, sizeof(struct route_count));
	__uint(max_entries, CHUNK);
};
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__type(key, u32);
	__uint(max_entries, 65); /* * */
	__array(values, struct chunk);
} counters SEC(".maps");

/* The services. Hosts, nearly all there are, have a table of their own, which takes less time to ask. The
 * target's mapping is the service's number. */
struct service_page {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(key_size, sizeof(u32));
	__uint(value_size, sizeof(struct service));
	__uint(max_entries, CHUNK);
	__uint(map_flags, BPF_F_MMAPABLE); /* as LINES */
};
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__type(key, u32);
	__uint(max_entries, 65); /* * */
	__array(values, struct service_page);
} services SEC(".maps");
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__type(key, struct service_key);
	__type(value, struct target);
	__uint(max_entries, 131072); /* * */
	__uint(map_flags, BPF_F_NO_PREALLOC);
} service_hosts SEC(".maps");
TRIE(service_ranges, struct service_range, struct target, 131072); /* * */
struct service_chunk {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(key_size, sizeof(u32));
	__uint(value_size, sizeof(struct service_count));
	__uint(max_entries, CHUNK);
};
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__type(key, u32);
	__uint(max_entries, 65); /* * */
	__array(values, struct service_chunk);
} service_counters SEC(".maps");

enum drop {
	D_MALFORMED,
	D_UNKNOWN_SOURCE,
	D_UNKNOWN_RLOC,
	D_SPOOFED_RLOC,
	D_SPOOFED_SOURCE,
	D_FOREIGN_DESTINATION,
	D_NOT_LOCAL,
	D_ECN,
	D_ROUTE,
	D_RLOC_DOWN,
	D_NO_PATH,
	D_MISS_RATE,
	D_TTL_RATE,
	D_ENCAP,
	D_DECAP,
	D_DOOR,
	D_TRANSLATE,
	D_POOL,
	D_TRANSLATE_RATE,
	D_MAX,
};
MAP(drops, BPF_MAP_TYPE_PERCPU_ARRAY, u32, struct count, 32);

/* What was handed up, by fib.Reason. */
enum { UP_MISS = 1, UP_HOLD, UP_COPY, UP_TOO_BIG, UP_TTL, UP_SEGMENT, UP_TRANSLATE };
MAP(ups, BPF_MAP_TYPE_PERCPU_ARRAY, u32, struct count, 8);

enum { T_MISS, T_TTL, T_EVENT, T_TRANSLATE, T_MAX };
MAP(tokens, BPF_MAP_TYPE_PERCPU_ARRAY, u32, struct bucket_of_tokens, T_MAX);

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 1 << 18);
} events SEC(".maps");

/* The kernel's jiffies, written by program clock. */
MAP(jiffies, BPF_MAP_TYPE_ARRAY, u32, u64, 1);
