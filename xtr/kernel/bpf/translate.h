/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* map646 (RFC 7915, 7757, 6052, 6296), the fast part: TCP, UDP and ICMP echo, whole or in fragments as far as
 * a fragment tells all that is needed. First plan says what is to become of a packet, without touching it;
 * then it finds its way as if it were that already; and when it is known that it fits, apply makes it so.
 * The rest is handed up as it came. */
#pragma once
#include "packet.h"

int up(struct __sk_buff *skb, struct pkt *p, u32 why, u32 q, u32 seq);
static __always_inline int up_ttl(struct __sk_buff *skb, struct conf *c, struct pkt *p);
static __always_inline int hops(const struct pkt *p);

struct frag6 {
	u8 next, reserved;
	be16 offset; /* M in the last bit */
	be32 id;
};

/* never_forwarded: multicast, broadcast, link-local, loopback and unspecified addresses. */
static __always_inline int never_forwarded(const union addr *a, u8 v6)
{
	if (v6) {
		u32 first = bpf_ntohl(a->w[0]);

		return (first >> 24) == 0xff || (first & 0xffc00000) == 0xfe800000 ||
		       (a->d[0] == 0 && a->w[2] == 0 && (a->w[3] & ~bpf_htonl(1)) == 0);
	} else {
		u32 v4 = bpf_ntohl(a->w[3]);

		return v4 >= 0xe0000000 || (v4 >> 24) == 127 || (v4 >> 24) == 0 || (v4 >> 16) == 0xa9fe;
	}
}

/* Sums in one's complement. The address 0 is none that comes here, so no sum is 0. */
static __always_inline u64 sum_addr(const union addr *a)
{
	return (u64)a->w[0] + a->w[1] + a->w[2] + a->w[3];
}

static __always_inline u32 fold64(u64 s)
{
	s = (s & 0xffffffff) + (s >> 32);
	return (s & 0xffffffff) + (s >> 32);
}

/* difference is what has to be added to a sum for is to take the place of was. */
static __always_inline u32 difference(u64 is, u64 was)
{
	return fold64((u64)fold64(is) + (u32)~fold64(was));
}

/* embed puts an IPv4 address behind the pool prefix, extract takes it from there (RFC 6052 section 2.3). Bits
 * 64 to 71 stay free. */
static __always_inline void embed(const struct conf *c, be32 v4, union addr *a)
{
	u32 v = bpf_ntohl(v4), n = 64 - c->pool_len;

	__builtin_memcpy(a, c->pool, 16);
	if (likely(c->pool_len == 96)) {
		a->w[3] = v4;
		return;
	}
	if (n > 32)
		return;
	a->d[0] |= bpf_cpu_to_be64((u64)v >> (32 - n));
	a->d[1] = bpf_cpu_to_be64(((u64)v << (24 + n)) & 0x00ffffffffffffffULL);
}

static __always_inline be32 extract(const struct conf *c, const union addr *a)
{
	u32 n = 64 - c->pool_len;

	if (likely(c->pool_len == 96))
		return a->w[3];
	if (n > 32)
		return 0;
	return bpf_htonl((u32)(bpf_be64_to_cpu(a->d[0]) << (32 - n) |
			       (bpf_be64_to_cpu(a->d[1]) & 0x00ffffffffffffffULL) >> (24 + n)));
}

static __always_inline int in_pool(const struct conf *c, const union addr *a)
{
	return ((a->w[0] ^ c->pool[0]) & c->pool_mask[0]) == 0 && ((a->w[1] ^ c->pool[1]) & c->pool_mask[1]) == 0 &&
	       ((a->w[2] ^ c->pool[2]) & c->pool_mask[2]) == 0 && ((a->w[3] ^ c->pool[3]) & c->pool_mask[3]) == 0;
}

static __always_inline int within(u32 a, u32 prefix, u32 bits) { return (a ^ prefix) >> (32 - bits) == 0; }

/* embeddable: only global addresses may be behind the Well-Known Prefix (RFC 6052 section 3.1). */
static __always_inline int embeddable(const struct conf *c, be32 v4)
{
	u32 a = bpf_ntohl(v4);

	if (!(c->flags & C_GLOBAL))
		return 1;
	return !(within(a, 0x00000000, 8) || within(a, 0x0a000000, 8) || within(a, 0x64400000, 10) ||
		 within(a, 0x7f000000, 8) || within(a, 0xa9fe0000, 16) || within(a, 0xac100000, 12) ||
		 within(a, 0xc0000000, 24) || within(a, 0xc0000200, 24) || within(a, 0xc0586300, 24) ||
		 within(a, 0xc0a80000, 16) || within(a, 0xc6120000, 15) || within(a, 0xc6336400, 24) ||
		 within(a, 0xcb007100, 24) || a >= 0xe0000000);
}

/* exchange gives an address the prefix of a service's other side. It returns -1 for what NPTv6 leaves to Go. */
static __always_inline int exchange(union addr *a, const struct service *s, const u32 *to, u16 add)
{
	u16 *w = (u16 *)a;
	u32 i, at = 8, v = 0;

	if (s->kind == S_NEUTRAL) {
		if (!a->d[1])
			return -1;
		if (s->word == 3) {
			at = 3;
		} else {
#pragma unroll
			for (i = 4; i < 8; i++)
				if (at == 8 && i >= s->word && w[i] != 0xffff)
					at = i;
		}
#pragma unroll
		for (i = 3; i < 8; i++)
			if (i == at)
				v = w[i];
		if (at == 8 || v == 0xffff)
			return -1;
		v = fold(v + add);
		if (v == 0xffff)
			v = 0;
	}
	a->w[0] = to[0] | (a->w[0] & s->keep[0]);
	a->w[1] = to[1] | (a->w[1] & s->keep[1]);
	a->w[2] = to[2] | (a->w[2] & s->keep[2]);
	a->w[3] = to[3] | (a->w[3] & s->keep[3]);
	if (s->kind == S_NEUTRAL) {
#pragma unroll
		for (i = 3; i < 8; i++)
			if (i == at)
				w[i] = v;
	}
	return 0;
}

static __always_inline struct service *service_at(u64 found)
{
	u32 n = found, chunk = n >> CHUNK_BITS, in = n & (CHUNK - 1);
	void *page;

	if (!n)
		return 0;
	page = bpf_map_lookup_elem(&services, &chunk);
	return page ? bpf_map_lookup_elem(page, &in) : 0;
}

/* fast_upper says whether the kernel can translate what is behind the IP header, which ends at: xflags, or -1.
 * n is its length, icmp the family's protocol of this name, frag whether it is a fragment, first whether the
 * first one. */
static __always_inline int fast_upper(struct __sk_buff *skb, void *at, u32 n, u8 proto, u8 icmp, int frag, int first)
{
	void *e = (void *)(long)skb->data_end;
	struct udp *u = at;
	u8 *b = at;

	switch (proto) {
	case IPPROTO_TCP:
		if (!first)
			return 0;
		return n >= 20 && at + 20 <= e ? XF_SUM : -1;
	case IPPROTO_UDP:
		if (!first)
			return 0;
		if (n < sizeof(*u) || (void *)(u + 1) > e || !u->csum)
			return -1;
		return XF_SUM;
	}
	if (proto != icmp || frag || n < 8 || (void *)(b + 8) > e || b[1])
		return -1;
	if (icmp == IPPROTO_ICMP)
		return b[0] == 8 || b[0] == 0 ? XF_SUM : -1;
	return b[0] == 128 || b[0] == 129 ? XF_SUM : -1;
}

/* fast4 says whether the kernel can translate an IPv4 packet: xflags, or -1. */
static __always_inline int fast4(struct __sk_buff *skb, struct pkt *p)
{
	void *d = (void *)(long)skb->data, *e = (void *)(long)skb->data_end;
	struct ip4 *ip;
	u32 field, n;
	int flags;
	u16 *w;

	if (p->l3 > ETH_LEN + OUTER6)
		return -1;
	ip = d + p->l3;
	if ((void *)(ip + 1) > e || ip->ver_ihl != 0x45 || p->len < sizeof(*ip))
		return -1;
	w = (u16 *)ip;
	if (fold(w[0] + w[1] + w[2] + w[3] + w[4] + w[5] + w[6] + w[7] + w[8] + w[9]) != 0xffff)
		return -1; /* its checksum would be lost */
	field = bpf_ntohs(ip->frag);
	n = p->len - sizeof(*ip);
	/* A fragment with more behind it that IPv6 could not say the length of. */
	if ((field & 0x2000) && (n & 7))
		return -1;
	flags = fast_upper(skb, ip + 1, n, p->proto, IPPROTO_ICMP, p->frag, !(field & 0x1fff));
	if (flags < 0)
		return -1;
	if (p->frag) {
		if (skb->gso_size || (field & 0x1fff) * 8 + n > 65535)
			return -1;
		flags |= XF_FRAG;
	}
	if (!(field & 0x4000))
		flags |= XF_DIVISIBLE;
	return flags;
}

/* fast6 says whether the kernel can translate an IPv6 packet: xflags, or -1. */
static __always_inline int fast6(struct __sk_buff *skb, struct pkt *p)
{
	void *d = (void *)(long)skb->data, *e = (void *)(long)skb->data_end;
	struct frag6 *f;
	struct ip6 *ip;
	u32 field, n;
	int flags;

	if (p->l3 > ETH_LEN + OUTER6)
		return -1;
	ip = d + p->l3;
	if ((void *)(ip + 1) > e || p->len < sizeof(*ip))
		return -1;
	n = p->len - sizeof(*ip);
	if (ip->next != IPPROTO_FRAGMENT)
		return fast_upper(skb, ip + 1, n, ip->next, IPPROTO_ICMPV6, 0, 1);
	f = (void *)(ip + 1);
	if ((void *)(f + 1) > e || n < sizeof(*f) || skb->gso_size)
		return -1;
	n -= sizeof(*f);
	field = bpf_ntohs(f->offset);
	if (((field & 1) && (n & 7)) || (field & 0xfff8) + n > 65535)
		return -1;
	flags = fast_upper(skb, f + 1, n, f->next, IPPROTO_ICMPV6, 1, !(field & 0xfff8));
	if (flags < 0)
		return -1;
	p->proto = f->next;
	return flags | XF_FRAG;
}

/* to_go hands up what the kernel does not translate. */
static __always_inline int to_go(struct __sk_buff *skb, struct conf *c, struct pkt *p)
{
	if (!allow(T_TRANSLATE, c->translate_rate))
		return drop(D_TRANSLATE_RATE, p->segs, p->len);
	return up(skb, p, UP_TRANSLATE, p->port, 0);
}

static __always_inline int from_internet(const struct pkt *p)
{
	return !(p->flags & (F_CLOUD | F_DOWN | F_STACK));
}

static __always_inline int plan46(struct __sk_buff *skb, struct conf *c, struct pkt *p)
{
	u64 found, from = 0;
	struct service *s;
	int flags;
	be32 src;

	if (!(c->flags & C_SERVICES4))
		return TC_ACT_UNSPEC;
	found = p->service ? p->service : find_service(&p->dst, TAG_OUT4);
	s = service_at(found);
	if (!s)
		return TC_ACT_UNSPEC;
	if (hops(p) && p->ttl <= 1)
		return up_ttl(skb, c, p);
	p->in = found >> 32;
	p->xlen = p->len;
	flags = fast4(skb, p);
	if (flags < 0 || never_forwarded(&p->src, 0) || exchange(&p->dst, s, s->inside, 0))
		return to_go(skb, c, p);
	if (!from_internet(p))
		from = find_service(&p->src, TAG_OUT4);
	s = service_at(from);
	if (unlikely(s)) {
		p->out = from >> 32;
		if (exchange(&p->src, s, s->inside, 0))
			return to_go(skb, c, p);
	} else {
		src = p->src.w[3];
		if (!(c->flags & C_POOL) || !embeddable(c, src))
			return to_go(skb, c, p);
		embed(c, src, &p->src);
	}
	p->x = X_46;
	p->xflags = flags;
	p->v6 = 1;
	p->tag = TAG6;
	p->len += 20;
	p->seglen += 20;
	if (flags & XF_FRAG) {
		p->len += sizeof(struct frag6);
		p->seglen += sizeof(struct frag6);
	}
	if (p->proto == IPPROTO_ICMP)
		p->proto = IPPROTO_ICMPV6;
	return TC_ACT_UNSPEC;
}

static __always_inline int plan64(struct __sk_buff *skb, struct conf *c, struct pkt *p)
{
	union addr dst = {};
	u64 found, other;
	struct service *s;
	u8 inside = 0;
	int flags;
	be32 src;

	if (from_internet(p))
		return drop(D_POOL, p->segs, p->len);
	if (hops(p) && p->ttl <= 1)
		return up_ttl(skb, c, p);
	if (p->flags & (F_DOWN | F_STACK))
		inside = F_TRANSIT; /* an ICMP error of our own about a packet that was translated here */
	dst.w[3] = extract(c, &p->dst);
	found = c->flags & C_SERVICES4 ? find_service(&p->src, TAG_IN4) : 0;
	s = service_at(found);
	if (!s || never_forwarded(&p->src, 1) || never_forwarded(&dst, 0) || !embeddable(c, dst.w[3])) {
		p->flags |= inside;
		return to_go(skb, c, p);
	}
	p->out = found >> 32;
	p->xlen = p->len - 20;
	flags = fast6(skb, p);
	if (flags < 0 || p->len > 65535 + 20) {
		p->flags |= inside;
		return to_go(skb, c, p);
	}
	src = s->outside[3] | (p->src.w[3] & s->keep[3]);
	other = find_service(&dst, TAG_OUT4);
	if (unlikely(other)) {
		/* From one service's VM to another's (RFC 7757 section 4.2.2): both translations at once. */
		s = service_at(other);
		if (!s || (flags & XF_FRAG) || !embeddable(c, src))
			return to_go(skb, c, p);
		p->in = other >> 32;
		exchange(&dst, s, s->inside, 0);
		p->dst = dst;
		embed(c, src, &p->src);
		p->x = X_66;
		p->xflags = flags | XF_LABEL;
		return TC_ACT_UNSPEC;
	}
	p->dst = dst;
	p->src.d[0] = 0;
	p->src.w[2] = 0;
	p->src.w[3] = src;
	p->x = X_64;
	p->xflags = flags;
	p->v6 = 0;
	p->tag = TAG4;
	p->len -= 20;
	p->seglen -= 20;
	if (flags & XF_FRAG) {
		p->len -= sizeof(struct frag6);
		p->seglen -= sizeof(struct frag6);
		p->xlen -= sizeof(struct frag6);
	}
	if (p->proto == IPPROTO_ICMPV6)
		p->proto = IPPROTO_ICMP;
	return TC_ACT_UNSPEC;
}

/* error_about_service says whether the packet is an ICMPv6 error about one to an address inside a service, which
 * nobody outside knows by that name. */
static __always_inline int error_about_service(struct __sk_buff *skb, const struct pkt *p)
{
	u32 at = p->l3 + sizeof(struct ip6);
	union addr dst;
	u8 kind;

	return !bpf_skb_load_bytes(skb, at, &kind, 1) && kind < 128 &&
	       !bpf_skb_load_bytes(skb, at + 8 + 24, &dst, sizeof(dst)) && find_service(&dst, TAG_IN6);
}

static __always_inline int plan66(struct __sk_buff *skb, struct conf *c, struct pkt *p)
{
	struct service *s;
	u64 in, out = 0;
	int flags;

	if (!(c->flags & C_SERVICES6))
		return TC_ACT_UNSPEC;
	in = find_service(&p->dst, TAG_OUT6);
	if (!from_internet(p)) {
		out = find_service(&p->src, TAG_IN6);
		/* Inside the cloud everybody knows a VM by its EID. */
		if (out && !in && covered(&own4, &own6, &p->dst, p->tag))
			out = 0;
	}
	if (!(in | out)) {
		if (unlikely(p->proto == IPPROTO_ICMPV6) && !from_internet(p) && error_about_service(skb, p) &&
		    !covered(&own4, &own6, &p->dst, p->tag))
			return to_go(skb, c, p);
		return TC_ACT_UNSPEC;
	}
	if (never_forwarded(&p->dst, 1))
		return TC_ACT_UNSPEC;
	if (hops(p) && p->ttl <= 1)
		return up_ttl(skb, c, p);
	p->xlen = p->len;
	p->in = in >> 32;
	p->out = out >> 32;
	flags = fast6(skb, p);
	if (flags < 0 || never_forwarded(&p->src, 1))
		return to_go(skb, c, p);
	flags |= XF_NEUTRAL;
	s = service_at(in);
	if (s) {
		if (s->kind != S_NEUTRAL)
			flags &= ~XF_NEUTRAL;
		if (exchange(&p->dst, s, s->inside, s->in))
			return to_go(skb, c, p);
	}
	s = service_at(out);
	if (s) {
		if (s->kind != S_NEUTRAL)
			flags &= ~XF_NEUTRAL;
		if (exchange(&p->src, s, s->outside, s->out))
			return to_go(skb, c, p);
	}
	p->x = X_66;
	p->xflags = flags;
	return TC_ACT_UNSPEC;
}

/* plan returns TC_ACT_UNSPEC when the packet is to be forwarded, after p->x has been set or not; otherwise
 * what has become of it. */
__noinline int plan(struct __sk_buff *skb, struct pkt *p)
{
	struct conf *c = get_conf();

	if (!p || !c)
		return TC_ACT_SHOT;
	if (!p->v6)
		return plan46(skb, c, p);
	if ((c->flags & C_POOL) && in_pool(c, &p->dst))
		return plan64(skb, c, p);
	return plan66(skb, c, p);
}

/* count_translation counts for the services that the packet belongs to. */
static __always_inline void count_translation(const struct pkt *p)
{
	if (p->in)
		count_service(p->in, 0, p->segs, p->xlen);
	if (p->out)
		count_service(p->out, 1, p->segs, p->xlen);
}

static __always_inline u32 checksum_at(u8 proto)
{
	return proto == IPPROTO_TCP ? 16 : proto == IPPROTO_UDP ? 6 : 2;
}

/* mend makes the checksum of the upper layer at l4 right, also where it is only begun (CHECKSUM_PARTIAL). */
static __always_inline int mend(struct __sk_buff *skb, const struct pkt *p, u32 l4, u32 diff)
{
	u64 flags = BPF_F_PSEUDO_HDR;
	u32 f = fold(diff);

	if (f == 0 || f == 0xffff)
		return 0;
	if (p->proto == IPPROTO_UDP)
		flags |= BPF_F_MARK_MANGLED_0;
	return bpf_l4_csum_replace(skb, l4 + checksum_at(p->proto), 0, diff, flags);
}

/* apply46 makes an IPv6 packet of an IPv4 packet that bears no outer headers (RFC 7915 section 4). */
static __always_inline int apply46(struct __sk_buff *skb, struct pkt *p)
{
	u32 room = p->xflags & XF_FRAG ? sizeof(struct frag6) : 0, l4 = ETH_LEN + sizeof(struct ip6) + room;
	struct ip4 *old = (void *)(long)skb->data + ETH_LEN;
	u64 was, is, total;
	struct eth *eth;
	u32 id, field;
	struct ip6 *ip;
	u8 kind = 0;

	if ((void *)(old + 1) > (void *)(long)skb->data_end)
		return -1;
	was = (u64)old->src + old->dst;
	id = bpf_ntohs(old->id);
	field = bpf_ntohs(old->frag);
	if (bpf_skb_change_proto(skb, bpf_htons(ETH_P_IPV6), 0))
		return -1;
	if (room && bpf_skb_adjust_room(skb, room, BPF_ADJ_ROOM_NET, BPF_F_ADJ_ROOM_FIXED_GSO | BPF_F_ADJ_ROOM_NO_CSUM_RESET))
		return -1;
	eth = (void *)(long)skb->data;
	ip = (void *)(eth + 1);
	if ((void *)(ip + 1) > (void *)(long)skb->data_end)
		return -1;
	eth->proto = bpf_htons(ETH_P_IPV6);
	ip->first = bpf_htonl(0x60000000 | (u32)p->tos << 20);
	ip->len = bpf_htons(p->len - sizeof(*ip));
	ip->next = room ? IPPROTO_FRAGMENT : p->proto;
	ip->hops = p->ttl;
	__builtin_memcpy(ip->src, &p->src, 16);
	__builtin_memcpy(ip->dst, &p->dst, 16);
	is = sum_addr(&p->src) + sum_addr(&p->dst);
	total = is + ip->first + ((u32 *)ip)[1];
	if (room) {
		struct frag6 *f = (void *)(ip + 1);

		if ((void *)(f + 1) > (void *)(long)skb->data_end)
			return -1;
		f->next = p->proto;
		f->reserved = 0;
		f->offset = bpf_htons((field & 0x1fff) << 3 | (field & 0x2000) >> 13);
		f->id = bpf_htonl(id);
		total += (u64)((u32 *)f)[0] + f->id;
	}
	if (p->proto == IPPROTO_ICMPV6) {
		u8 *t = (void *)(ip + 1);

		if ((void *)(t + 8) > (void *)(long)skb->data_end)
			return -1;
		kind = *t;
		*t = kind == 8 ? 128 : 129;
		/* What the pseudo-header adds, which ICMPv4 does not have. */
		is += *t + (u64)bpf_htonl(p->len - sizeof(*ip)) + bpf_htonl(IPPROTO_ICMPV6);
		was = kind;
		total += *t + 0xffff - kind;
	}
	/* A whole-packet checksum of the NIC has to follow. The old header's sum was zero. */
	bpf_csum_update(skb, fold64(total));
	if ((p->xflags & XF_SUM) && mend(skb, p, l4, difference(is, was)))
		return -1;
	if (p->l4)
		p->l4 = l4;
	return 0;
}

/* apply64 makes an IPv4 packet of an IPv6 packet that bears no outer headers (RFC 7915 section 5). */
static __always_inline int apply64(struct __sk_buff *skb, struct pkt *p)
{
	u32 l4 = ETH_LEN + sizeof(struct ip4), sum, field = 0, id = 0;
	struct ip6 *old = (void *)(long)skb->data + ETH_LEN;
	u64 was, is, total;
	struct eth *eth;
	struct ip4 *ip;
	u8 kind = 0;
	u16 *w;

	if ((void *)(old + 1) > (void *)(long)skb->data_end)
		return -1;
	was = (u64)old->src[0] + old->src[1] + old->src[2];
	total = (u64)old->src[3] + old->dst[0] + old->dst[1] + old->dst[2] + old->dst[3];
	was += total;
	if (p->xflags & XF_FRAG) {
		struct frag6 *f = (void *)(old + 1);

		if ((void *)(f + 1) > (void *)(long)skb->data_end)
			return -1;
		field = bpf_ntohs(f->offset);
		field = field >> 3 | (field & 1) << 13;
		id = bpf_ntohl(f->id) & 0xffff;
		if (bpf_skb_adjust_room(skb, -(s32)sizeof(*f), BPF_ADJ_ROOM_NET,
					BPF_F_ADJ_ROOM_FIXED_GSO | BPF_F_ADJ_ROOM_NO_CSUM_RESET))
			return -1;
	} else if (p->seglen > 1260) {
		field = 0x4000; /* and the identification may be anything (RFC 6864) */
	} else {
		id = bpf_get_prandom_u32() & 0xffff;
	}
	if (bpf_skb_change_proto(skb, bpf_htons(ETH_P_IP), 0))
		return -1;
	eth = (void *)(long)skb->data;
	ip = (void *)(eth + 1);
	if ((void *)(ip + 1) > (void *)(long)skb->data_end)
		return -1;
	eth->proto = bpf_htons(ETH_P_IP);
	w = (u16 *)ip;
	ip->ver_ihl = 0x45;
	ip->tos = p->tos;
	ip->len = bpf_htons(p->len);
	ip->id = bpf_htons(id);
	ip->frag = bpf_htons(field);
	ip->ttl = p->ttl;
	ip->proto = p->proto;
	ip->src = p->src.w[3];
	ip->dst = p->dst.w[3];
	is = (u64)ip->src + ip->dst;
	sum = w[0] + w[1] + w[2] + w[3] + w[4] + w[6] + w[7] + w[8] + w[9];
	ip->csum = ~fold(sum);
	if (p->proto == IPPROTO_ICMP) {
		u8 *t = (void *)(ip + 1);

		if ((void *)(t + 8) > (void *)(long)skb->data_end)
			return -1;
		kind = *t;
		*t = kind == 128 ? 8 : 0;
		was += kind + (u64)bpf_htonl(p->len - sizeof(*ip)) + bpf_htonl(IPPROTO_ICMPV6);
		is = *t + 0xffff;
		total += kind + 0xffff - *t;
	}
	/* The kernel took what it cut off out of a whole-packet checksum; the rest of the old header is left. */
	bpf_csum_update(skb, ~fold64(total));
	if ((p->xflags & XF_SUM) && mend(skb, p, l4, difference(is, was)))
		return -1;
	if (p->l4)
		p->l4 = l4;
	return 0;
}

/* apply66 exchanges the addresses of an IPv6 packet in place. */
static __always_inline int apply66(struct __sk_buff *skb, struct pkt *p)
{
	struct ip6 *ip = (void *)(long)skb->data;
	u32 l4, diff;
	u64 was, is;

	if (p->l3 > ETH_LEN + OUTER6)
		return -1;
	ip = (void *)ip + p->l3;
	if ((void *)(ip + 1) > (void *)(long)skb->data_end)
		return -1;
	was = (u64)ip->src[0] + ip->src[1] + ip->src[2] + ip->src[3] + ip->dst[0] + ip->dst[1] + ip->dst[2] + ip->dst[3];
	is = sum_addr(&p->src) + sum_addr(&p->dst);
	diff = difference(is, was);
	if (p->xflags & XF_LABEL) {
		be32 first = ip->first;

		ip->first = first & bpf_htonl(0xfff00000);
		bpf_csum_update(skb, difference(is + ip->first, was + first));
	} else {
		bpf_csum_update(skb, diff);
	}
	__builtin_memcpy(ip->src, &p->src, 16);
	__builtin_memcpy(ip->dst, &p->dst, 16);
	if ((p->xflags & (XF_SUM | XF_NEUTRAL)) != XF_SUM)
		return 0;
	l4 = p->l3 + sizeof(*ip) + (p->xflags & XF_FRAG ? sizeof(struct frag6) : 0);
	return mend(skb, p, l4, diff);
}

/* apply does what was planned. 6 to 6 leaves outer headers where they are. */
__noinline int apply(struct __sk_buff *skb, struct pkt *p)
{
	int rc;

	if (!p)
		return -1;
	count_translation(p);
	if (p->x == X_66) {
		rc = apply66(skb, p);
	} else {
		p->marked |= p->outer != 0;
		if (strip(skb, p, p->x == X_64))
			return -1;
		rc = p->x == X_46 ? apply46(skb, p) : apply64(skb, p);
	}
	p->x = 0;
	return rc;
}

/* set_inner writes what the inner header is to say: all of it, or only TTL and TOS. */
static __always_inline int set_inner(struct __sk_buff *skb, struct pkt *p)
{
	if (p->x) {
		int again = p->x == X_66;

		if (apply(skb, p))
			return -1 - D_TRANSLATE;
		if (!again)
			return 0;
	}
	return write_inner(skb, p, p->l3) ? -1 - D_MALFORMED : 0;
}
