/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The outer headers of a LISP data packet: are they for us, and from whom. For TC and XDP alike. */
#pragma once
#include "packet.h"

struct outer {
	union addr rloc; /* outer source */
	u32 len;	 /* of the outer headers */
	u32 payload;	 /* length that they claim for the inner packet */
	u32 iid;
	u16 sport;
	u8 ttl, tos;
	u8 v6;
};

static __always_inline int is_self4(struct conf *c, be32 a)
{
	u32 i;

	for (i = 0; i < SELF; i++)
		if (i < c->n4 && c->self4[i] == a)
			return 1;
	return 0;
}

static __always_inline int is_self6(struct conf *c, const u32 *a)
{
	u32 i;

	for (i = 0; i < SELF; i++)
		if (i < c->n6 && c->self6[i][0] == a[0] && c->self6[i][1] == a[1] && c->self6[i][2] == a[2] &&
		    c->self6[i][3] == a[3])
			return 1;
	return 0;
}

/* looks_like_lisp is a cheap first look at an IP header, which lies within bounds. Fragments are left to
 * the kernel to reassemble. */
static __always_inline int udp4(const struct ip4 *ip)
{
	return ip->ver_ihl == 0x45 && ip->proto == IPPROTO_UDP && !(ip->frag & bpf_htons(0x3fff));
}

/* read_outer4 and read_outer6 return 0: not a LISP data packet for us; 1: it is; -1: it is, and broken. */
static __always_inline int read_lisp(const struct udp *u, const struct lisp *l, struct outer *o)
{
	u32 n = bpf_ntohs(u->len);

	if (l->flags & LISP_KK) /* encrypted (RFC 8061); we gave nobody a key */
		return -1;
	if ((l->flags & LISP_P) && l->nonce[2] != LISP_IP4 && l->nonce[2] != LISP_IP6)
		return -1;
	o->iid = l->flags & LISP_I ? bpf_ntohl(l->iid) >> 8 : 0;
	o->sport = bpf_ntohs(u->src);
	if (o->payload < n || n < sizeof(*u) + sizeof(*l))
		return -1;
	o->payload = n - sizeof(*u) - sizeof(*l);
	return 1;
}

static __always_inline int read_outer4(void *d, void *e, struct conf *c, struct outer *o)
{
	struct outer4 *h = d;
	u32 n;

	if ((void *)(h + 1) > e)
		return 0;
	if (!udp4(&h->ip) || h->udp.dst != bpf_htons(LISP_DATA_PORT) || !is_self4(c, h->ip.dst))
		return 0;
	o->rloc.d[0] = 0;
	o->rloc.w[2] = 0;
	o->rloc.w[3] = h->ip.src;
	o->len = OUTER4;
	o->v6 = 0;
	o->ttl = h->ip.ttl;
	o->tos = h->ip.tos;
	n = bpf_ntohs(h->ip.len);
	if (n < sizeof(h->ip))
		return -1;
	o->payload = n - sizeof(h->ip);
	return read_lisp(&h->udp, &h->lisp, o);
}

static __always_inline int read_outer6(void *d, void *e, struct conf *c, struct outer *o)
{
	struct outer6 *h = d;

	if ((void *)(h + 1) > e)
		return 0;
	if (h->ip.next != IPPROTO_UDP || h->udp.dst != bpf_htons(LISP_DATA_PORT) || !is_self6(c, h->ip.dst))
		return 0;
	__builtin_memcpy(&o->rloc, h->ip.src, 16);
	o->len = OUTER6;
	o->v6 = 1;
	o->ttl = h->ip.hops;
	o->tos = bpf_ntohl(h->ip.first) >> 20;
	o->payload = bpf_ntohs(h->ip.len);
	return read_lisp(&h->udp, &h->lisp, o);
}

/* judge says what an outer source is good for: pkt.flags to set, or -1 - reason. */
static __always_inline int judge(struct conf *c, const struct outer *o, int upstream)
{
	int flags = F_TRANSIT | F_RLOC | (o->v6 ? F_RLOC6 : 0);

	if (covered(&allow4, &allow6, &o->rloc, o->v6 ? TAG6 : TAG4)) {
		if (upstream)
			return -1 - D_SPOOFED_RLOC;
		flags |= F_CLOUD;
		if (o->sport == LISP_DATA_PORT)
			flags |= F_REPLAY;
		return flags;
	}
	if (!(c->flags & C_ANCHOR))
		return -1 - D_UNKNOWN_RLOC;
	return flags;
}

/* What XDP tells TC of a packet that it decapsulated. */
struct meta {
	u64 secret;
	u32 iid;
	u32 flags; /* pkt.flags */
	union addr rloc;
};
