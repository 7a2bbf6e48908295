/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What happens to a packet, once it is known. */
#pragma once
#include "translate.h"

enum { EV_SOURCE = 1, EV_UNKNOWN_SOURCE, EV_MOVED, EV_NOT_LOCAL };

/* report tells Go of an address, at most once a second for the same one. */
__noinline int report(struct __sk_buff *skb, struct pkt *p, u32 kind, u32 nonce)
{
	struct conf *c = get_conf();
	struct limit_key k = {.kind = kind, .nonce = nonce};
	struct event *ev;
	u64 now = bpf_jiffies64(), *last;
	struct eth *eth;

	if (!c || !p)
		return 0;
	k.tag = p->tag;
	if (kind == EV_SOURCE || kind == EV_UNKNOWN_SOURCE) {
		k.eid = p->src;
		k.rloc.w[0] = skb->ifindex;
	} else {
		k.eid = p->dst;
		k.rloc = p->rloc;
	}
	last = bpf_map_lookup_elem(&limits, &k);
	if (last && now - *last < c->hz)
		return 0;
	if (!allow(T_EVENT, c->event_rate))
		return 0;
	bpf_map_update_elem(&limits, &k, &now, BPF_ANY);
	ev = bpf_ringbuf_reserve(&events, sizeof(*ev), 0);
	if (!ev)
		return 0;
	__builtin_memset(ev, 0, sizeof(*ev));
	ev->kind = kind;
	ev->v6 = p->v6;
	ev->iid = p->tag & 0xffffff;
	ev->eid = k.eid;
	if (kind == EV_SOURCE || kind == EV_UNKNOWN_SOURCE) {
		ev->ifindex = skb->ifindex;
		eth = (void *)(long)skb->data;
		if ((void *)(eth + 1) <= (void *)(long)skb->data_end)
			__builtin_memcpy(ev->mac, eth->src, 6);
	} else if (p->flags & F_RLOC) {
		ev->rloc = p->rloc;
		ev->has_rloc = 1;
		ev->rloc6 = (p->flags & F_RLOC6) != 0;
	}
	bpf_ringbuf_submit(ev, 0);
	return 0;
}

/* up hands the packet to Go through lisp0. With UP_SEGMENT it goes as it is; otherwise without outer
 * headers. What waits for a route goes up as map646 made it, all else as it came. q is a hold or a port, seq
 * what the reason asks for. */
__noinline int up(struct __sk_buff *skb, struct pkt *p, u32 why, u32 q, u32 seq)
{
	struct conf *c = get_conf();
	u8 *m;

	if (!p || !c)
		return TC_ACT_SHOT;

	if (p->x && (why == UP_MISS || why == UP_HOLD)) {
		if (apply(skb, p))
			return drop(D_TRANSLATE, p->segs, p->len);
	} else if (p->x) {
		p->v6 = p->x != X_46;
		p->x = 0;
		if (why == UP_TOO_BIG)
			why = UP_TRANSLATE;
	}
	if (why == UP_TRANSLATE)
		count_translation(p);
	if (why != UP_SEGMENT && p->outer) {
		if (write_inner(skb, p, p->l3))
			return drop(D_MALFORMED, p->segs, p->len);
		if (strip(skb, p, p->v6))
			return drop(D_DECAP, p->segs, p->len);
	}
	m = (void *)(long)skb->data;
	if ((void *)(m + ETH_LEN) > (void *)(long)skb->data_end)
		return drop(D_MALFORMED, p->segs, p->len);
	write_door(m, why, p->tag, p->flags & (F_TRANSIT | F_REPLAY), q, seq);
	count(&ups, why, p->segs, p->len);
	if (p->flags & F_STACK)
		return TC_ACT_OK; /* is on its way there */
	if (!c->door)
		return drop(D_DOOR, p->segs, p->len);
	return bpf_redirect(c->door, 0);
}

static __always_inline int up_ttl(struct __sk_buff *skb, struct conf *c, struct pkt *p)
{
	if (!allow(T_TTL, c->ttl_rate))
		return drop(D_TTL_RATE, p->segs, p->len);
	return up(skb, p, UP_TTL, p->port, 0);
}

/* reinjected counts a held packet that is out; only after it is out, so that a live packet that finds
 * the counters equal comes behind it. */
static __always_inline void reinjected(struct pkt *p)
{
	u32 h = p->hold;
	struct hold *hold;

	if (!(p->flags & F_COUNTED))
		return;
	p->flags &= ~F_COUNTED;
	hold = bpf_map_lookup_elem(&holds, &h);
	if (hold)
		__sync_fetch_and_add(&hold->reinjected, p->segs);
}

/* diverting says whether a packet for a route with a hold must queue behind what was diverted before. */
static __always_inline int diverting(u32 number, const struct hold *h)
{
	volatile u64 *gone = bpf_map_lookup_elem(&lost, &number);
	u64 back = *(volatile u64 *)&h->reinjected;

	if (gone)
		back += *gone;
	return *(volatile u64 *)&h->diverted != back;
}

static __always_inline int not_local(struct __sk_buff *skb, struct pkt *p)
{
	report(skb, p, EV_NOT_LOCAL, 0);
	return drop(D_NOT_LOCAL, p->segs, p->len);
}

/* hops says whether this is a hop for the packet. It was one already for what is replayed and for what
 * the host's stack forwarded. */
static __always_inline int hops(const struct pkt *p)
{
	return !(p->flags & F_STACK) && (p->flags & (F_REPLAY | F_DOWN)) != (F_REPLAY | F_DOWN);
}

/* pick chooses the RLOC by the flow; one that is down leaves its share to the next slots. */
static __always_inline struct rloc *pick(const struct mapping *m, u32 hash)
{
	u32 i, first = hash >> 20;

	for (i = 0; i < SLOTS; i++) {
		u32 at = m->slot[(first + i) & (SLOTS - 1)];
		struct rloc *r = bpf_map_lookup_elem(&rlocs, &at);

		if (r && r->up)
			return r;
	}
	return 0;
}

/* out sends an encapsulated packet to the next hop, whose MAC address the kernel knows or asks for. */
static __always_inline int out(const struct rloc *r)
{
	struct bpf_redir_neigh nh = {.nh_family = r->family};

	if (!r->family)
		return bpf_redirect_neigh(r->ifindex, 0, 0, 0);
	__builtin_memcpy(nh.ipv6_nh, r->hop, 16);
	return bpf_redirect_neigh(r->ifindex, &nh, sizeof(nh), 0);
}

/* out_counted sends an encapsulated packet now, not after the program, so that it can be counted as
 * out. */
static __always_inline int out_counted(struct __sk_buff *skb, struct conf *c, const struct rloc *r, struct pkt *p)
{
	/* As if it had come in by lisp0: the kernel answers for interfaces that forward, and lisp0 does. */
	struct bpf_fib_lookup f = {.ifindex = c->door, .l4_protocol = IPPROTO_UDP};
	struct eth *eth;

	if (r->v6) {
		f.family = AF_INET6;
		__builtin_memcpy(f.ipv6_src, r->src, 16);
		__builtin_memcpy(f.ipv6_dst, r->dst, 16);
	} else {
		f.family = AF_INET;
		f.ipv4_src = r->src[0];
		f.ipv4_dst = r->dst[0];
	}
	if (bpf_fib_lookup(skb, &f, sizeof(f), 0) != BPF_FIB_LKUP_RET_SUCCESS || f.ifindex != r->ifindex) {
		/* The neighbour is to be asked for first, and the kernel keeps the order behind that. */
		return out(r);
	}
	eth = (void *)(long)skb->data;
	if ((void *)(eth + 1) > (void *)(long)skb->data_end)
		return TC_ACT_SHOT;
	__builtin_memcpy(eth->dst, f.dmac, 6);
	__builtin_memcpy(eth->src, f.smac, 6);
	bpf_clone_redirect(skb, f.ifindex, 0);
	reinjected(p);
	return TC_ACT_SHOT; /* the original; its clone is out */
}

/* must_divide: IPv4 packets that may be fragmented are, should IPv6 not carry them everywhere (RFC 7915 section
 * 4.1). */
static __always_inline int must_divide(const struct conf *c, const struct pkt *p)
{
	return p->x == X_46 && (p->xflags & XF_DIVISIBLE) && p->seglen > c->lowest6;
}

static __always_inline int encap(struct __sk_buff *skb, struct conf *c, struct pkt *p, const struct mapping *m,
				 u32 counter)
{
	struct rloc *r;
	u32 most;
	int rc;

	if ((p->flags & F_TRANSIT) && !(m->flags & M_TRANSIT))
		return not_local(skb, p);
	if ((m->flags & M_MOVED) && (p->flags & F_RLOC))
		report(skb, p, EV_MOVED, 0);
	if (hops(p) && p->ttl <= 1)
		return up_ttl(skb, c, p);
	if (!gso_known(skb, p))
		return up(skb, p, UP_SEGMENT, p->port, 0);
	r = pick(m, p->hash);
	if (!r)
		return drop(D_RLOC_DOWN, p->segs, p->len);
	if (!r->ifindex)
		return drop(D_NO_PATH, p->segs, p->len);
	most = m->mtu ? m->mtu : c->mtu;
	if (r->mtu && r->mtu < most)
		most = r->mtu;
	if (p->seglen > most || must_divide(c, p))
		return up(skb, p, UP_TOO_BIG, p->port, most);
	if (p->len > 65535 - OUTER6) /* the outer length has 16 bits */
		return up(skb, p, UP_SEGMENT, p->port, 0);
	/* The kernel has marks of where the inner headers are, which could not be made anew. */
	if (skb->gso_size && p->outer && p->x && p->x != X_66)
		return up(skb, p, UP_SEGMENT, p->port, 0);
	if (hops(p))
		p->ttl--;
	rc = set_inner(skb, p);
	if (rc)
		return drop(-1 - rc, p->segs, p->len);
	if (p->proto == IPPROTO_TCP && p->l4 && p->len < 200)
		clamp_mss(skb, p->l4, most - (p->v6 ? 60 : 40));
	count_route(counter, p->segs, p->len);
	if (wrap(skb, r, p))
		return drop(D_ENCAP, p->segs, p->len);
	if (p->flags & F_COUNTED)
		return out_counted(skb, c, r, p);
	return out(r);
}

static __always_inline int deliver(struct __sk_buff *skb, struct conf *c, struct pkt *p, const struct mapping *m,
				   u32 counter)
{
	u32 at = (u32)m->port - 1, ifindex = m->ifindex;
	struct port *port = bpf_map_lookup_elem(&ports, &at);
	struct eth *eth;
	int rc;

	if (!ifindex || !port || port->ifindex != ifindex)
		return drop(D_NO_PATH, p->segs, p->len);
	if (port->flags & P_STACK) {
		/* The host's stack forwards, so that its filters see the packet. */
		if (p->flags & F_STACK)
			return drop(D_NO_PATH, p->segs, p->len);
		if ((p->flags & F_TRANSIT) || p->x) {
			rc = set_inner(skb, p);
			if (rc)
				return drop(-1 - rc, p->segs, p->len);
		}
		if (strip(skb, p, p->v6))
			return drop(D_DECAP, p->segs, p->len);
		count_route(counter, p->segs, p->len);
		if (p->flags & F_DOWN)
			bpf_skb_change_type(skb, PACKET_HOST);
		return TC_ACT_OK;
	}
	if (hops(p) && p->ttl <= 1)
		return up_ttl(skb, c, p);
	if ((port->mtu && p->seglen > port->mtu) || must_divide(c, p))
		return up(skb, p, UP_TOO_BIG, p->port, port->mtu);
	if (hops(p))
		p->ttl--;
	rc = set_inner(skb, p);
	if (rc)
		return drop(-1 - rc, p->segs, p->len);
	if (strip(skb, p, p->v6))
		return drop(D_DECAP, p->segs, p->len);
	eth = (void *)(long)skb->data;
	if ((void *)(eth + 1) > (void *)(long)skb->data_end)
		return drop(D_MALFORMED, p->segs, p->len);
	__builtin_memcpy(eth->dst, m->mac, 6);
	__builtin_memcpy(eth->src, port->mac, 6);
	count_route(counter, p->segs, p->len);
	if (p->flags & F_COUNTED) {
		bpf_clone_redirect(skb, ifindex, 0);
		reinjected(p);
		return TC_ACT_SHOT; /* the original; its clone is out */
	}
	return bpf_redirect(ifindex, 0);
}

/* native forwards a packet that was decapsulated, as a PETR does: by the kernel's routes, and through
 * its stack whenever there is more to it than a route and a neighbour. */
static __always_inline int native(struct __sk_buff *skb, struct conf *c, struct pkt *p, const struct mapping *m,
				  u32 counter)
{
	struct bpf_fib_lookup f = {};
	struct bpf_redir_neigh nh = {};
	struct eth *eth;
	long rc;
	int bad;

	if (must_divide(c, p))
		return up(skb, p, UP_TOO_BIG, p->port, c->lowest6);
	if (!(p->flags & F_TRANSIT)) {
		if (p->flags & F_STACK)
			return drop(D_NO_PATH, p->segs, p->len);
		count_route(counter, p->segs, p->len);
		if (p->x) {
			bad = set_inner(skb, p);
			if (bad)
				return drop(-1 - bad, p->segs, p->len);
		}
		if (p->flags & F_DOWN)
			bpf_skb_change_type(skb, PACKET_HOST);
		return TC_ACT_OK;
	}
	if (!(c->flags & C_ANCHOR) && !(m->flags & M_TRANSIT))
		return not_local(skb, p);
	count_route(counter, p->segs, p->len);
	f.ifindex = skb->ifindex;
	f.l4_protocol = p->proto;
	f.tot_len = p->seglen > 65535 ? 65535 : p->seglen;
	if (p->v6) {
		f.family = AF_INET6;
		__builtin_memcpy(f.ipv6_src, &p->src, 16);
		__builtin_memcpy(f.ipv6_dst, &p->dst, 16);
	} else {
		f.family = AF_INET;
		f.tos = p->tos & 0xfc;
		f.ipv4_src = p->src.w[3];
		f.ipv4_dst = p->dst.w[3];
	}
	rc = bpf_fib_lookup(skb, &f, sizeof(f), 0);
	if (rc == BPF_FIB_LKUP_RET_FRAG_NEEDED && p->x)
		return up(skb, p, UP_TOO_BIG, p->port, f.tot_len);
	if ((rc != BPF_FIB_LKUP_RET_SUCCESS && rc != BPF_FIB_LKUP_RET_NO_NEIGH) || p->ttl <= 1) {
		bad = set_inner(skb, p);
		if (bad)
			return drop(-1 - bad, p->segs, p->len);
		if (strip(skb, p, p->v6))
			return drop(D_DECAP, p->segs, p->len);
		if (p->flags & F_DOWN)
			bpf_skb_change_type(skb, PACKET_HOST);
		return TC_ACT_OK;
	}
	if (f.ifindex == c->door)
		return drop(D_NO_PATH, p->segs, p->len);
	p->ttl--;
	bad = set_inner(skb, p);
	if (bad)
		return drop(-1 - bad, p->segs, p->len);
	if (strip(skb, p, p->v6))
		return drop(D_DECAP, p->segs, p->len);
	if (rc == BPF_FIB_LKUP_RET_NO_NEIGH) {
		nh.nh_family = f.family;
		__builtin_memcpy(nh.ipv6_nh, f.ipv6_dst, 16);
		return bpf_redirect_neigh(f.ifindex, &nh, sizeof(nh), 0);
	}
	eth = (void *)(long)skb->data;
	if ((void *)(eth + 1) > (void *)(long)skb->data_end)
		return drop(D_MALFORMED, p->segs, p->len);
	__builtin_memcpy(eth->dst, f.dmac, 6);
	__builtin_memcpy(eth->src, f.smac, 6);
	return bpf_redirect(f.ifindex, 0);
}

/* forward does what the destination's route says. */
__noinline int forward(struct __sk_buff *skb, struct pkt *p)
{
	struct conf *c = get_conf();
	u32 counter = 0, hold, act;
	struct mapping *m;
	struct hold *h;

	if (!p || !c)
		return TC_ACT_SHOT;
	m = find(c, &p->dst, p->tag, &counter);
	if (!m)
		return drop(D_NO_PATH, p->segs, p->len);
	hold = m->hold;
	act = m->act;
	if (unlikely((m->flags & M_ARRIVING) && !(p->flags & F_TRANSIT))) {
		/* The VM is on its way here and still runs where it was: what this host's VMs send to it goes
		 * there, and comes back when it has stopped. */
		act = DO_ENCAP;
		hold = 0;
	}
	if (unlikely(hold && (act == DO_HOLD || !(p->flags & F_DOWN)))) {
		/* What would not be forwarded anyway is not held either. */
		if (act == DO_ENCAP && (p->flags & F_TRANSIT) && !(m->flags & M_TRANSIT))
			return not_local(skb, p);
		h = bpf_map_lookup_elem(&holds, &hold);
		if (h && (act == DO_HOLD || diverting(hold, h))) {
			if ((m->flags & M_MOVED) && (p->flags & F_RLOC))
				report(skb, p, EV_MOVED, 0);
			__sync_fetch_and_add(&h->diverted, p->segs);
			count_route(counter, p->segs, p->len);
			return up(skb, p, UP_HOLD, hold, 0);
		}
	}
	switch (act) {
	case DO_ENCAP:
		return encap(skb, c, p, m, counter);
	case DO_DELIVER:
		return deliver(skb, c, p, m, counter);
	case DO_NATIVE:
		return native(skb, c, p, m, counter);
	case DO_MISS:
		if ((p->flags & F_TRANSIT) && !(c->flags & C_ANCHOR) && !(m->flags & M_TRANSIT))
			return not_local(skb, p);
		count_route(counter, p->segs, p->len);
		if (!allow(T_MISS, c->miss_rate))
			return drop(D_MISS_RATE, p->segs, p->len);
		return up(skb, p, UP_MISS, p->port, 0);
	}
	count_route(counter, p->segs, p->len);
	return drop(D_ROUTE, p->segs, p->len);
}

/* onward translates what is to be translated, and forwards. */
static __always_inline int onward(struct __sk_buff *skb, struct conf *c, struct pkt *p)
{
	if ((c->flags & C_TRANSLATE) && !(p->tag & 0xffffff)) {
		int rc = plan(skb, p);

		if (rc != TC_ACT_UNSPEC)
			return rc;
	}
	return forward(skb, p);
}
