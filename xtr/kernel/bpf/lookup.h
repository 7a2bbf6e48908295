/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Looking things up, counting, limiting. */
#pragma once
#include "maps.h"

static __always_inline u32 mix(u32 h, u32 w)
{
	h = (h ^ w) * 0x9e3779b1;
	return h ^ (h >> 15);
}

static __always_inline u32 avalanche(u32 h)
{
	h *= 0x85ebca6b;
	h ^= h >> 13;
	h *= 0xc2b2ae35;
	return h ^ (h >> 16);
}

/* hash_addr says which generation and which cache bucket an address belongs to; Go computes it too. */
static __always_inline u32 hash_addr(const union addr *a, u32 tag)
{
	u32 h = mix(tag, a->w[3]);

	if (tag & TAG_V6) {
		h = mix(h, a->w[2]);
		h = mix(h, a->w[1]);
		h = mix(h, a->w[0]);
	}
	return avalanche(h);
}

static __always_inline struct conf *get_conf(void)
{
	u32 zero = 0;

	return bpf_map_lookup_elem(&conf, &zero);
}

static __always_inline void count(void *map, u32 key, u64 packets, u64 bytes)
{
	struct count *c = bpf_map_lookup_elem(map, &key);

	if (c) {
		c->packets += packets;
		c->bytes += bytes;
	}
}

static __noinline int drop(u32 why, u64 packets, u64 bytes)
{
	count(&drops, why, packets, bytes);
	return TC_ACT_SHOT;
}

static __always_inline void count_route(u32 counter, u64 packets, u64 bytes)
{
	u32 chunk = counter >> CHUNK_BITS, in = counter & (CHUNK - 1);
	void *inner = bpf_map_lookup_elem(&counters, &chunk);
	struct route_count *c;

	if (!inner)
		return;
	c = bpf_map_lookup_elem(inner, &in);
	if (!c)
		return;
	c->packets += packets;
	c->bytes += bytes;
	c->used = bpf_jiffies64();
}

/* count_service counts for one direction of a service. */
static __always_inline void count_service(u32 counter, int out, u64 packets, u64 bytes)
{
	u32 chunk = counter >> CHUNK_BITS, in = counter & (CHUNK - 1);
	void *inner = bpf_map_lookup_elem(&service_counters, &chunk);
	struct service_count *c;

	if (!inner)
		return;
	c = bpf_map_lookup_elem(inner, &in);
	if (!c)
		return;
	if (out) {
		c->out_packets += packets;
		c->out_bytes += bytes;
	} else {
		c->in_packets += packets;
		c->in_bytes += bytes;
	}
}

static __always_inline u32 gen_of(u32 hash)
{
	u32 k = hash & (GENS - 1), all = GENS;
	u32 *one = bpf_map_lookup_elem(&gens, &k), *every = bpf_map_lookup_elem(&gens, &all);

	if (!one || !every)
		return 0;
	return *(volatile u32 *)one + *(volatile u32 *)every;
}

/* ask_services asks the tables of services. */
static __always_inline struct target *ask_services(const union addr *a, u32 tag)
{
	struct service_key host = {.tag = tag};
	struct service_range range = {.plen = 160, .tag = tag};
	struct conf *c = get_conf();
	struct target *t;

	__builtin_memcpy(host.addr, a, 16);
	t = bpf_map_lookup_elem(&service_hosts, &host);
	if (t || !c || !(c->flags & C_RANGES))
		return t;
	if (tag & TAG_V6)
		__builtin_memcpy(range.addr, a, 16);
	else
		range.addr[0] = a->w[3];
	return bpf_map_lookup_elem(&service_ranges, &range);
}

/* find_slow asks the tables of routes and services. */
__noinline int find_slow(const union addr *a, u32 tag, struct target *to)
{
	struct target *t;

	if (!a || !to)
		return 0;
	if (tag & TAG_SERVICE) {
		t = ask_services(a, tag);
	} else if ((tag >> 24) == 4) {
		struct key4 k = {.plen = 64, .iid = bpf_htonl(tag & 0xffffff), .addr = a->w[3]};

		t = bpf_map_lookup_elem(&eid4, &k);
	} else {
		struct key6 k = {.plen = 160, .iid = bpf_htonl(tag & 0xffffff)};

		__builtin_memcpy(k.addr, a, 16);
		t = bpf_map_lookup_elem(&eid6, &k);
	}
	if (t) {
		to->mapping = t->mapping;
		to->counter = t->counter;
	} else {
		to->mapping = 0;
		to->counter = 0;
	}
	return 0;
}

static __always_inline int same(const struct hit *h, const union addr *a, u32 tag, u32 gen)
{
	return h->tag == tag && h->gen == gen && h->addr.d[0] == a->d[0] && h->addr.d[1] == a->d[1];
}

/* find_target looks an address up: first in this CPU's cache, then in the tables. The generation is read
 * before the tables are asked, so that what was found in an old one can never pass for new. */
static __always_inline int find_target(struct conf *c, const union addr *a, u32 tag, struct target *to)
{
	u32 h = hash_addr(a, tag), gen = gen_of(h), at = (h >> 10) & c->cache_mask;
	struct bucket *b = bpf_map_lookup_elem(&dcache, &at);

	if (!b)
		return -1;
	if (likely(same(&b->way[0], a, tag, gen))) {
		*to = b->way[0].to;
	} else if (same(&b->way[1], a, tag, gen)) {
		*to = b->way[1].to;
	} else {
		find_slow(a, tag, to);
		b->way[1] = b->way[0];
		b->way[0].addr = *a;
		b->way[0].tag = tag;
		b->way[0].gen = gen;
		b->way[0].to = *to;
	}
	return 0;
}

/* find looks an EID up. */
static __always_inline struct mapping *find(struct conf *c, const union addr *a, u32 tag, u32 *counter)
{
	struct target to;

	if (find_target(c, a, tag, &to))
		return 0;
	*counter = to.counter;
	return bpf_map_lookup_elem(&mappings, &to.mapping);
}

/* find_service returns the number of the service that an address belongs to, and in the upper half that of
 * its counter; 0: none. */
__noinline u64 find_service(const union addr *a, u32 tag)
{
	struct conf *c = get_conf();
	struct target to;

	if (!a || !c || find_target(c, a, tag, &to) || !to.mapping)
		return 0;
	return (u64)to.counter << 32 | to.mapping;
}

/* covered says whether a prefix of one of the two tries covers a. */
static __always_inline int covered(void *trie4, void *trie6, const union addr *a, u32 tag)
{
	if ((tag >> 24) == 4) {
		struct key4 k = {.plen = 64, .iid = bpf_htonl(tag & 0xffffff), .addr = a->w[3]};

		return bpf_map_lookup_elem(trie4, &k) != 0;
	} else {
		struct key6 k = {.plen = 160, .iid = bpf_htonl(tag & 0xffffff)};

		__builtin_memcpy(k.addr, a, 16);
		return bpf_map_lookup_elem(trie6, &k) != 0;
	}
}

static __always_inline struct port *port_of(u32 ifindex, u16 *number)
{
	u32 i, at;
	struct port *p;

	for (i = 0; i < PORT_PROBES; i++) {
		at = (ifindex + i) & (PORTS - 1);
		p = bpf_map_lookup_elem(&ports, &at);
		if (p && p->ifindex == ifindex) {
			*number = at + 1;
			return p;
		}
	}
	return 0;
}

/* allow takes one token of this CPU. rate is in tokens per 1024 jiffies; as many as come in 64 may be saved
 * up. */
static __always_inline int allow(u32 what, u64 rate)
{
	struct bucket_of_tokens *t = bpf_map_lookup_elem(&tokens, &what);
	u64 now, burst = rate << 6;

	if (!t)
		return 0;
	now = bpf_jiffies64();
	if (now != t->filled) {
		if (now - t->filled > 64)
			t->tokens = burst;
		else
			t->tokens += (now - t->filled) * rate;
		if (t->tokens > burst)
			t->tokens = burst;
		t->filled = now;
	}
	if (t->tokens < 1024)
		return 0;
	t->tokens -= 1024;
	return 1;
}
