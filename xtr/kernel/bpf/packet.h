/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Headers: reading them and writing them. */
#pragma once
#include "lookup.h"

#define ETH_LEN 14
#define LISP_DATA_PORT 4341
#define OUTER4 36 /* IPv4, UDP and LISP headers */
#define OUTER6 56

struct eth {
	u8 dst[6], src[6];
	be16 proto;
} __attribute__((packed));

struct ip4 {
	u8 ver_ihl, tos;
	be16 len;
	be16 id, frag;
	u8 ttl, proto;
	u16 csum;
	be32 src, dst;
};

struct ip6 {
	be32 first; /* version, traffic class, flow label */
	be16 len;
	u8 next, hops;
	u32 src[4], dst[4];
};

struct udp {
	be16 src, dst, len;
	u16 csum;
};

struct lisp {
	u8 flags;
	u8 nonce[3];
	be32 iid;
};
#define LISP_I 0x08
#define LISP_P 0x04 /* RFC 9305: nonce[2] is the next protocol */
#define LISP_KK 0x03
#define LISP_IP4 1
#define LISP_IP6 2

struct outer4 {
	struct ip4 ip;
	struct udp udp;
	struct lisp lisp;
};

struct outer6 {
	struct ip6 ip;
	struct udp udp;
	struct lisp lisp;
};

_Static_assert(sizeof(struct outer4) == OUTER4, "outer IPv4 headers");
_Static_assert(sizeof(struct outer6) == OUTER6, "outer IPv6 headers");

/* pkt.flags; the first three are fib.UpFlags and fib.DownFlags where those say the same */
enum {
	F_TRANSIT = 1,	/* came decapsulated from the underlay */
	F_REPLAY = 2,	/* a replay: outer source port 4341 */
	F_CLOUD = 4,	/* the outer source is one of the cloud's RLOCs */
	F_RLOC = 8,	/* rloc is known */
	F_RLOC6 = 16,	/* rloc is IPv6 */
	F_DOWN = 32,	/* came from Go: not to be diverted to a hold */
	F_COUNTED = 64, /* counts as reinjected to hold */
	F_STACK = 128,	/* the host's stack routed it to lisp0 */
};

/* What is known of the packet at hand. */
struct pkt {
	union addr src, dst; /* inner */
	union addr rloc;     /* outer source */
	u32 tag;	     /* instance-ID and inner family */
	u32 l3;		     /* where the inner IP header is */
	u32 l4;		     /* where the header of the first segment's TCP or UDP is, 0 = unknown */
	u32 len;	     /* of the inner packet */
	u32 seglen;	     /* of one segment of it, IP header included */
	u32 segs;
	u32 hash;
	u32 outer; /* length of the outer headers that it still bears: 0, OUTER4, OUTER6 */
	u32 hold;
	u16 port; /* VM port that it came from, 0 = none */
	u8 flags;
	u8 v6;
	u8 proto;
	u8 ttl, tos; /* what the inner header will say: outer ones merged in */
	u8 frag;
	/* What map646 is about to do. While x is not 0 the bytes are still what they were, but all that is
	 * said above is what they will be. */
	u8 x;
	u8 xflags;
	u8 marked;	/* bore outer headers that the kernel still has marks of */
	u8 pad;
	u32 xlen;	/* of the packet as it is outside */
	u32 in, out;	/* counters of the services, 0 = none */
	u64 service;	/* that the IPv4 destination is known to belong to, as find_service says it */
};

/* pkt.x: 4 to 6, 6 to 4, 6 to 6 */
enum { X_46 = 1, X_64, X_66 };

/* pkt.xflags */
enum {
	XF_FRAG = 1,	  /* is a fragment */
	XF_SUM = 2,	  /* a checksum covers the addresses, and is in this packet */
	XF_NEUTRAL = 4,	  /* but need not change */
	XF_DIVISIBLE = 8, /* an IPv4 packet that may be fragmented */
	XF_LABEL = 16,	  /* the flow label goes */
};

/* Frames through lisp0; package fib has the other side of this. */
#define DOOR_MAGIC 0x06
enum { DOWN_FORWARD = 1, DOWN_NATIVE };
#define U_SPLIT 4

static __always_inline void write_door(u8 *m, u32 what, u32 tag, u32 flags, u32 q, u32 seq)
{
	m[0] = DOOR_MAGIC;
	m[1] = what;
	m[2] = tag >> 16;
	m[3] = tag >> 8;
	m[4] = tag;
	m[5] = flags;
	m[6] = q >> 8;
	m[7] = q;
	m[8] = seq >> 24;
	m[9] = seq >> 16;
	m[10] = seq >> 8;
	m[11] = seq;
}

static __always_inline u32 fold(u32 c)
{
	c = (c & 0xffff) + (c >> 16);
	return (c & 0xffff) + (c >> 16);
}

static __always_inline int is_v4_mapped(const u32 *a)
{
	return a[0] == 0 && a[1] == 0 && a[2] == bpf_htonl(0xffff);
}

/* merge_ecn is the decapsulation table of RFC 6040 section 4.2 on the ECN fields of two TOS octets; it
 * returns the inner one's new value, or -1: drop. */
static __always_inline int merge_ecn(u8 outer, u8 inner)
{
	outer &= 3;
	inner &= 3;
	if (outer == 3)
		return inner ? 3 : -1;
	if (outer == 1 && inner == 2)
		return 1;
	return inner;
}

/* merge brings what the outer header says of TTL, DSCP and ECN into the inner one's values (RFC 9300
 * section 5.3). It returns -1 when the packet must be dropped. */
static __always_inline int merge(u8 ottl, u8 otos, u8 *ttl, u8 *tos)
{
	int ecn = merge_ecn(otos, *tos);

	if (ecn < 0)
		return -1;
	*tos = (otos & 0xfc) | ecn;
	if (ottl < *ttl)
		*ttl = ottl;
	return 0;
}

static __always_inline void write_ttl_tos4(struct ip4 *ip, u8 ttl, u8 tos)
{
	u16 *w = (u16 *)ip;
	u32 sum = (u16)~ip->csum + (u16)~w[0] + (u16)~w[4];

	ip->tos = tos;
	ip->ttl = ttl;
	ip->csum = ~fold(sum + w[0] + w[4]);
}

static __always_inline void write_ttl_tos6(struct ip6 *ip, u8 ttl, u8 tos)
{
	ip->first = (ip->first & bpf_htonl(0xf00fffff)) | bpf_htonl((u32)tos << 20);
	ip->hops = ttl;
}

/* parse reads the inner IP header at p->l3. It returns -1 for what is no sound packet. */
static __always_inline int parse(struct __sk_buff *skb, struct pkt *p)
{
	u32 gso = skb->gso_size, have, head, h;
	void *d = (void *)(long)skb->data, *e = (void *)(long)skb->data_end;
	u32 l3 = p->l3;
	void *ip;

	if (l3 > ETH_LEN + OUTER6)
		return -1;
	if (unlikely(d + l3 + 80 > e)) {
		/* The headers may lie in fragments of the buffer. */
		if (skb->len > e - d && bpf_skb_pull_data(skb, skb->len < 192 ? skb->len : 192))
			return -1;
		d = (void *)(long)skb->data;
		e = (void *)(long)skb->data_end;
	}
	ip = d + l3;
	if (ip + sizeof(struct ip4) > e || skb->len < l3)
		return -1;
	have = skb->len - l3;
	p->frag = 0;
	p->l4 = 0;
	switch (*(u8 *)ip >> 4) {
	case 4: {
		struct ip4 *i = ip;
		u32 ihl = (i->ver_ihl & 15) * 4;

		p->v6 = 0;
		p->len = bpf_ntohs(i->len);
		if (ihl < sizeof(*i) || ihl > p->len)
			return -1;
		p->src.d[0] = 0;
		p->src.w[2] = 0;
		p->src.w[3] = i->src;
		p->dst.d[0] = 0;
		p->dst.w[2] = 0;
		p->dst.w[3] = i->dst;
		p->proto = i->proto;
		p->ttl = i->ttl;
		p->tos = i->tos;
		p->tag = (p->tag & 0xffffff) | TAG4;
		p->frag = (i->frag & bpf_htons(0x3fff)) != 0;
		head = ihl;
		h = mix(mix(0, i->src), i->dst);
		break;
	}
	case 6: {
		struct ip6 *i = ip;

		if (ip + sizeof(*i) > e)
			return -1;
		p->v6 = 1;
		p->len = bpf_ntohs(i->len) + sizeof(*i);
		__builtin_memcpy(&p->src, i->src, 16);
		__builtin_memcpy(&p->dst, i->dst, 16);
		if (is_v4_mapped(i->src) || is_v4_mapped(i->dst))
			return -1;
		p->proto = i->next;
		p->ttl = i->hops;
		p->tos = bpf_ntohl(i->first) >> 20;
		p->tag = (p->tag & 0xffffff) | TAG6;
		head = sizeof(*i);
		h = mix(mix(mix(mix(0, i->src[0]), i->src[1]), i->src[2]), i->src[3]);
		h = mix(mix(mix(mix(h, i->dst[0]), i->dst[1]), i->dst[2]), i->dst[3]);
		break;
	}
	default:
		return -1;
	}
	h = mix(h, p->proto);
	if (p->len > have || (gso && p->len != have))
		return -1;
	p->seglen = p->len;
	p->segs = 1;
	if (!p->frag && (p->proto == IPPROTO_TCP || p->proto == IPPROTO_UDP || p->proto == IPPROTO_SCTP ||
			 p->proto == IPPROTO_DCCP || p->proto == IPPROTO_UDPLITE)) {
		u8 *t = ip + head;

		p->l4 = l3 + head;
		if ((void *)t + 4 <= e)
			h = mix(h, *(u32 *)t);
		if (gso) {
			if (p->proto == IPPROTO_TCP) {
				if ((void *)t + 20 > e)
					return -1;
				head += (t[12] >> 4) * 4;
			} else {
				head += sizeof(struct udp);
			}
			p->seglen = head + gso;
			if (p->len > head)
				p->segs = (p->len - head + gso - 1) / gso;
		}
	} else if (gso) {
		/* Not ours to measure; the caller sees it by proto. */
		p->segs = (p->len - head + gso - 1) / gso;
	}
	p->hash = avalanche(h);
	return 0;
}

/* gso_known says whether the length of a super-packet's segments is known. */
static __always_inline int gso_known(struct __sk_buff *skb, const struct pkt *p)
{
	return !skb->gso_size || p->proto == IPPROTO_TCP || p->proto == IPPROTO_UDP;
}

/* write_inner writes TTL and TOS of the inner header at l3. */
static __always_inline int write_inner(struct __sk_buff *skb, const struct pkt *p, u32 l3)
{
	void *d = (void *)(long)skb->data, *e = (void *)(long)skb->data_end;

	if (l3 > ETH_LEN + OUTER6)
		return -1;
	if (p->v6) {
		struct ip6 *ip = d + l3;
		u32 sum;

		if ((void *)(ip + 1) > e)
			return -1;
		if (!(p->flags & F_TRANSIT)) {
			write_ttl_tos6(ip, p->ttl, p->tos);
			return 0;
		}
		/* A whole-packet checksum of the NIC has to follow; IPv4's own header checksum makes up
		 * for the change there. */
		sum = fold(~ip->first & 0xffff) + fold(~ip->first >> 16) + (u16)~((u16 *)ip)[3];
		write_ttl_tos6(ip, p->ttl, p->tos);
		sum += (ip->first & 0xffff) + (ip->first >> 16) + ((u16 *)ip)[3];
		bpf_csum_update(skb, sum);
	} else {
		struct ip4 *ip = d + l3;

		if ((void *)(ip + 1) > e)
			return -1;
		write_ttl_tos4(ip, p->ttl, p->tos);
	}
	return 0;
}

/* strip takes the outer headers off what is IPv6 inside, or IPv4. The Ethernet header stays, with the inner
 * EtherType. */
static __always_inline int strip(struct __sk_buff *skb, struct pkt *p, int v6)
{
	u64 flags = BPF_F_ADJ_ROOM_FIXED_GSO;
	struct eth *eth;

	if (!p->outer)
		return 0;
	flags |= v6 ? BPF_F_ADJ_ROOM_DECAP_L3_IPV6 : BPF_F_ADJ_ROOM_DECAP_L3_IPV4;
	if (bpf_skb_adjust_room(skb, -(s32)p->outer, BPF_ADJ_ROOM_MAC, flags))
		return -1;
	eth = (void *)(long)skb->data;
	if ((void *)(eth + 1) > (void *)(long)skb->data_end)
		return -1;
	eth->proto = v6 ? bpf_htons(ETH_P_IPV6) : bpf_htons(ETH_P_IP);
	if (p->l4)
		p->l4 -= p->outer;
	p->l3 = ETH_LEN;
	p->outer = 0;
	return 0;
}

static __always_inline u16 source_port(const struct pkt *p)
{
	return p->flags & F_REPLAY ? LISP_DATA_PORT : 0xc000 | (p->hash & 0x3fff);
}

static __always_inline void fill_udp_lisp(struct udp *u, struct lisp *l, const struct rloc *r, const struct pkt *p)
{
	u32 iid = p->tag & 0xffffff;

	u->src = bpf_htons(source_port(p));
	u->dst = bpf_htons(LISP_DATA_PORT);
	u->len = bpf_htons(p->len + sizeof(*u) + sizeof(*l));
	u->csum = 0;
	l->flags = iid ? LISP_I : 0;
	l->nonce[0] = 0;
	l->nonce[1] = 0;
	l->nonce[2] = 0;
	if (r->gpe) {
		l->flags |= LISP_P;
		l->nonce[2] = p->v6 ? LISP_IP6 : LISP_IP4;
	}
	l->iid = bpf_htonl(iid << 8);
}

/* fill4 writes the outer headers. DF is set, so the identification may be 0 (RFC 6864); segmentation
 * counts it up. ECN: normal mode of RFC 6040 section 4.1, a copy. */
static __always_inline void fill4(struct outer4 *o, const struct rloc *r, const struct pkt *p)
{
	u16 *w = (u16 *)o;
	u32 sum;

	o->ip.ver_ihl = 0x45;
	o->ip.tos = p->tos;
	o->ip.len = bpf_htons(p->len + OUTER4);
	o->ip.id = 0;
	o->ip.frag = bpf_htons(0x4000);
	o->ip.ttl = p->ttl;
	o->ip.proto = IPPROTO_UDP;
	o->ip.src = r->src[0];
	o->ip.dst = r->dst[0];
	sum = r->csum + w[0] + w[1] + w[3] + w[4];
	o->ip.csum = ~fold(sum);
	fill_udp_lisp(&o->udp, &o->lisp, r, p);
}

static __always_inline void fill6(struct outer6 *o, const struct rloc *r, const struct pkt *p)
{
	o->ip.first = bpf_htonl(0x60000000 | (u32)p->tos << 20 | (p->hash & 0xfffff));
	o->ip.len = bpf_htons(p->len + OUTER6 - sizeof(o->ip));
	o->ip.next = IPPROTO_UDP;
	o->ip.hops = p->ttl;
	__builtin_memcpy(o->ip.src, r->src, 16);
	__builtin_memcpy(o->ip.dst, r->dst, 16);
	fill_udp_lisp(&o->udp, &o->lisp, r, p);
}

static __always_inline int push4(struct __sk_buff *skb, const struct rloc *r, const struct pkt *p)
{
	struct eth *eth = (void *)(long)skb->data;
	struct outer4 *o = (void *)(eth + 1);

	if ((void *)(o + 1) > (void *)(long)skb->data_end)
		return -1;
	eth->proto = bpf_htons(ETH_P_IP);
	fill4(o, r, p);
	return 0;
}

static __always_inline int push6(struct __sk_buff *skb, const struct rloc *r, const struct pkt *p)
{
	struct eth *eth = (void *)(long)skb->data;
	struct outer6 *o = (void *)(eth + 1);

	if ((void *)(o + 1) > (void *)(long)skb->data_end)
		return -1;
	eth->proto = bpf_htons(ETH_P_IPV6);
	fill6(o, r, p);
	return 0;
}

#define ENCAP_FLAGS \
	(BPF_F_ADJ_ROOM_FIXED_GSO | BPF_F_ADJ_ROOM_ENCAP_L4_UDP | BPF_F_ADJ_ROOM_NO_CSUM_RESET)

/* wrap gives the packet its outer headers. One that still bears outer headers keeps them where it can:
 * the kernel would refuse to mark it as encapsulated once more, and its marks are right already. */
static __always_inline int wrap(struct __sk_buff *skb, const struct rloc *r, struct pkt *p)
{
	if (!p->outer && p->marked) {
		/* It was translated without outer headers, but the marks of the old ones stayed. It is no
		 * super-packet, so they do no harm, but new ones cannot be made. */
		if (bpf_skb_adjust_room(skb, r->v6 ? OUTER6 : OUTER4, BPF_ADJ_ROOM_MAC, BPF_F_ADJ_ROOM_FIXED_GSO))
			return -1;
		if (r->v6 == p->v6)
			return r->v6 ? push6(skb, r, p) : push4(skb, r, p);
		if (bpf_skb_adjust_room(skb, 4, BPF_ADJ_ROOM_MAC, BPF_F_ADJ_ROOM_FIXED_GSO) ||
		    bpf_skb_adjust_room(skb, -4, BPF_ADJ_ROOM_MAC,
					BPF_F_ADJ_ROOM_FIXED_GSO |
					(r->v6 ? BPF_F_ADJ_ROOM_DECAP_L3_IPV6 : BPF_F_ADJ_ROOM_DECAP_L3_IPV4)))
			return -1;
		return r->v6 ? push6(skb, r, p) : push4(skb, r, p);
	}
	if (!p->outer) {
		if (r->v6) {
			if (bpf_skb_adjust_room(skb, OUTER6, BPF_ADJ_ROOM_MAC,
						ENCAP_FLAGS | BPF_F_ADJ_ROOM_ENCAP_L3_IPV6))
				return -1;
			return push6(skb, r, p);
		}
		if (bpf_skb_adjust_room(skb, OUTER4, BPF_ADJ_ROOM_MAC,
					ENCAP_FLAGS | BPF_F_ADJ_ROOM_ENCAP_L3_IPV4))
			return -1;
		return push4(skb, r, p);
	}
	if (r->v6) {
		/* Only taking room away changes the packet's protocol: so some more than is needed, and the
		 * rest of it away, "leaving IPv6". (Not the other way round: it might be too short to be an
		 * IPv6 packet for a moment.) */
		if (p->outer == OUTER4 &&
		    (bpf_skb_adjust_room(skb, OUTER6 - OUTER4 + 4, BPF_ADJ_ROOM_MAC, BPF_F_ADJ_ROOM_FIXED_GSO) ||
		     bpf_skb_adjust_room(skb, -4, BPF_ADJ_ROOM_MAC,
					 BPF_F_ADJ_ROOM_FIXED_GSO | BPF_F_ADJ_ROOM_DECAP_L3_IPV6)))
			return -1;
		return push6(skb, r, p);
	}
	if (p->outer == OUTER6 && bpf_skb_adjust_room(skb, OUTER4 - OUTER6, BPF_ADJ_ROOM_MAC,
						      BPF_F_ADJ_ROOM_FIXED_GSO | BPF_F_ADJ_ROOM_DECAP_L3_IPV4))
		return -1;
	return push4(skb, r, p);
}

/* A TCP header whose options are looked through for the MSS. */
struct options {
	u8 tcp[64];
	u32 len; /* of the header */
	u32 at;
	u32 mss; /* where its value is, 0 = not found */
};

static long next_option(u32 i, struct options *o)
{
	u32 at = o->at;
	u8 kind, len;

	if (at > 56 || at >= o->len)
		return 1;
	kind = o->tcp[at];
	if (kind == 0)
		return 1;
	if (kind == 1) {
		o->at = at + 1;
		return 0;
	}
	len = o->tcp[at + 1];
	if (len < 2)
		return 1;
	if (kind == 2) {
		if (len == 4 && at + 4 <= o->len)
			o->mss = at + 2;
		return 1;
	}
	o->at = at + len;
	return 0;
}

/* clamp_mss lowers the MSS that a SYN offers to what fits mtu. The TCP checksum follows, also where it
 * is only begun (CHECKSUM_PARTIAL): the kernel's helper knows. */
__noinline int clamp_mss(struct __sk_buff *skb, u32 l4, u32 most)
{
	struct options o = {.at = 20};
	be16 from, to, put = bpf_htons(most);
	u32 n, at;

	if (bpf_skb_load_bytes(skb, l4, o.tcp, 20) || !(o.tcp[13] & 2))
		return 0;
	n = (o.tcp[12] >> 4) * 4;
	if (n <= 20 || n > 60)
		return 0;
	o.len = n;
	n -= 20;
	if (bpf_skb_load_bytes(skb, l4 + 20, o.tcp + 20, n))
		return 0;
	bpf_loop(40, next_option, &o, 0);
	at = o.mss;
	if (!at || at > 58)
		return 0;
	if ((o.tcp[at] << 8 | o.tcp[at + 1]) <= most)
		return 0;
	from = bpf_htons(o.tcp[at] << 8 | o.tcp[at + 1]);
	to = put;
	if (at & 1) { /* the checksum's words lie across the value */
		from = __builtin_bswap16(from);
		to = __builtin_bswap16(to);
	}
	if (bpf_l4_csum_replace(skb, l4 + 16, from, to, 2))
		return 0;
	bpf_skb_store_bytes(skb, l4 + at, &put, 2, 0);
	return 1;
}
