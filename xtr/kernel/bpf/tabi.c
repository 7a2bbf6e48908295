/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The data plane of an xTR or D-ETR (RFC 9300). One program for each place where packets pass. */
#include "forward.h"
#include "outer.h"

char _license[] SEC("license") = "Dual BSD/GPL";

static __always_inline int is_ip(struct __sk_buff *skb)
{
	return skb->protocol == bpf_htons(ETH_P_IP) || skb->protocol == bpf_htons(ETH_P_IPV6);
}

/* vm_in: a frame from a VM. */
SEC("tc") int vm_in(struct __sk_buff *skb)
{
	struct pkt p = {.l3 = ETH_LEN};
	struct conf *c = get_conf();
	struct port *port;
	struct mapping *m;
	u32 counter, at_home;

	if (!c || !is_ip(skb) || skb->vlan_present)
		return TC_ACT_UNSPEC;
	port = port_of(skb->ifindex, &p.port);
	if (!port)
		return TC_ACT_UNSPEC;
	p.tag = port->iid;
	if (parse(skb, &p))
		return drop(D_MALFORMED, 1, skb->len);
	if (never_forwarded(&p.dst, p.v6))
		return TC_ACT_UNSPEC;
	m = find(c, &p.src, p.tag, &counter);
	at_home = m && ((m->act == DO_DELIVER && m->ifindex == skb->ifindex) ||
			((m->flags & M_WATCH) && (m->ifindex == skb->ifindex || !m->ifindex)));
	if (!at_home) {
		if (!never_forwarded(&p.src, p.v6))
			report(skb, &p, EV_UNKNOWN_SOURCE, 0);
		return drop(D_UNKNOWN_SOURCE, p.segs, p.len);
	}
	if (m->flags & M_WATCH)
		report(skb, &p, EV_SOURCE, m->nonce);
	if (port->flags & P_STACK)
		return TC_ACT_UNSPEC;
	return forward(skb, &p);
}

/* will_split says whether the kernel will segment a super-packet before the interface gets it: it does
 * when the reader of the interface takes no such packets, or when TC took a tunnel's headers off, which
 * leaves the packet marked as one of a tunnel. */
static __always_inline int will_split(struct __sk_buff *skb)
{
	struct sk_buff *k = bpf_cast_to_kern_ctx(skb);
	struct net_device *dev = k->dev;
	struct skb_shared_info *info;
	u64 can = dev->features, need;

	if (BPF_CORE_READ_BITFIELD(k, encapsulation))
		can &= dev->hw_enc_features;
	info = bpf_rdonly_cast(k->head + k->end, bpf_core_type_id_kernel(struct skb_shared_info));
	need = (u64)(info->gso_type & ~SKB_GSO_DODGY) << NETIF_F_GSO_SHIFT;
	return (can & need) != need;
}

/* vm_out: a frame that is given to a VM. It counts every one as the interface will when it is read, and
 * hands copies up for the routes that ask for them. */
SEC("tc") int vm_out(struct __sk_buff *skb)
{
	struct pkt p = {.l3 = ETH_LEN};
	u8 macs[12];
	u32 n = 1, counter, at;
	u64 *sum, first;
	struct mapping *m;
	struct conf *c;
	struct port *port;
	int ip = 0;
	u16 number;
	u8 *f;

	port = port_of(skb->ifindex, &number);
	if (!port)
		return TC_ACT_UNSPEC;
	if ((skb->gso_size || port->copies) && is_ip(skb) && !skb->vlan_present) {
		p.tag = port->iid;
		ip = parse(skb, &p) == 0;
	}
	if (ip && skb->gso_size && will_split(skb))
		n = p.segs;
	at = (u32)number - 1;
	sum = bpf_map_lookup_elem(&given, &at);
	if (!sum)
		return TC_ACT_UNSPEC;
	first = port->base + __sync_fetch_and_add(sum, n) + 1;
	if (!ip || !port->copies)
		return TC_ACT_UNSPEC;
	c = get_conf();
	if (!c || !c->door)
		return TC_ACT_UNSPEC;
	m = find(c, &p.dst, p.tag, &counter);
	if (!m)
		return TC_ACT_UNSPEC;
	/* Another program looked the route up to come here. If the VM has stopped since, the route leads elsewhere
	 * by now, and the copy is all that will be left of the packet. */
	if (m->act != DO_ENCAP && m->act != DO_HOLD &&
	    (m->act != DO_DELIVER || !(m->flags & M_COPY) || m->ifindex != skb->ifindex))
		return TC_ACT_UNSPEC;
	f = (void *)(long)skb->data;
	if ((void *)(f + ETH_LEN) > (void *)(long)skb->data_end)
		return TC_ACT_UNSPEC;
	__builtin_memcpy(macs, f, 12);
	write_door(f, UP_COPY, p.tag, n > 1 ? U_SPLIT : 0, number, first);
	count(&ups, UP_COPY, p.segs, p.len);
	bpf_clone_redirect(skb, c->door, 0);
	/* The clone kept the old header; ours is a copy now. */
	f = (void *)(long)skb->data;
	if ((void *)(f + ETH_LEN) > (void *)(long)skb->data_end)
		return TC_ACT_SHOT;
	__builtin_memcpy(f, macs, 12);
	return TC_ACT_UNSPEC;
}

/* inner checks the inner addresses against who sent the packet, then forwards it. */
static __always_inline int inner(struct __sk_buff *skb, struct conf *c, struct pkt *p)
{
	if (never_forwarded(&p->dst, p->v6))
		return drop(D_MALFORMED, p->segs, p->len);
	if (!(p->flags & F_CLOUD) && !(p->flags & F_DOWN)) {
		if (!covered(&own4, &own6, &p->dst, p->tag))
			return drop(D_FOREIGN_DESTINATION, p->segs, p->len);
		if (covered(&own4, &own6, &p->src, p->tag))
			return drop(D_SPOOFED_SOURCE, p->segs, p->len);
	}
	return onward(skb, c, p);
}

/* is_tunnel_gso: the segments of a super-packet share one outer header. Not so where UDP GRO merged
 * encapsulated packets (rx-udp-gro-forwarding): there every one has its own. */
static __always_inline int is_tunnel_gso(struct __sk_buff *skb)
{
	struct sk_buff *k = bpf_cast_to_kern_ctx(skb);
	struct skb_shared_info *info;

	info = bpf_rdonly_cast(k->head + k->end, bpf_core_type_id_kernel(struct skb_shared_info));
	return (info->gso_type & SKB_GSO_UDP_TUNNEL) != 0;
}

/* decap takes a LISP data packet that still bears its outer headers, or returns TC_ACT_UNSPEC. */
static __always_inline int decap(struct __sk_buff *skb, struct conf *c, struct pkt *p, int upstream)
{
	void *d = (void *)(long)skb->data, *e = (void *)(long)skb->data_end;
	struct outer o = {};
	int rc;

	if (skb->protocol == bpf_htons(ETH_P_IP)) {
		if (d + ETH_LEN + sizeof(struct ip4) > e || !udp4(d + ETH_LEN))
			return TC_ACT_UNSPEC;
	} else {
		if (d + ETH_LEN + sizeof(struct ip6) > e ||
		    ((struct ip6 *)(d + ETH_LEN))->next != IPPROTO_UDP)
			return TC_ACT_UNSPEC;
	}
	if (d + ETH_LEN + OUTER6 > e) {
		if (skb->len > e - d && bpf_skb_pull_data(skb, skb->len < 192 ? skb->len : 192))
			return TC_ACT_UNSPEC;
		d = (void *)(long)skb->data;
		e = (void *)(long)skb->data_end;
	}
	if (skb->protocol == bpf_htons(ETH_P_IP))
		rc = read_outer4(d + ETH_LEN, e, c, &o);
	else
		rc = read_outer6(d + ETH_LEN, e, c, &o);
	if (rc == 0)
		return TC_ACT_UNSPEC;
	if (rc < 0)
		return drop(D_MALFORMED, 1, skb->len);
	if (p->flags & F_DOWN) {
		/* It was judged when it came; the source tells whether it may be a replay. */
		if (o.sport == LISP_DATA_PORT && covered(&allow4, &allow6, &o.rloc, o.v6 ? TAG6 : TAG4))
			p->flags |= F_REPLAY;
		p->flags |= F_RLOC | (o.v6 ? F_RLOC6 : 0);
	} else {
		rc = judge(c, &o, upstream);
		if (rc < 0)
			return drop(-1 - rc, 1, skb->len);
		p->flags = rc;
	}
	p->rloc = o.rloc;
	p->tag = o.iid;
	p->outer = o.len;
	p->l3 = ETH_LEN + o.len;
	if (skb->gso_size && !is_tunnel_gso(skb))
		return up(skb, p, UP_SEGMENT, 0, 0); /* Go splits them, each with its outer header */
	if (parse(skb, p) || (p->len > o.payload && !skb->gso_size))
		return drop(D_MALFORMED, 1, skb->len);
	if (merge(o.ttl, o.tos, &p->ttl, &p->tos))
		return drop(D_ECN, p->segs, p->len);
	/* The kernel would take the segments of a UDP super-packet for a tunnel's once the outer headers
	 * are off, and lose them. Through lisp0 it splits them as they are. */
	if (skb->gso_size && p->proto != IPPROTO_TCP)
		return up(skb, p, UP_SEGMENT, 0, 0);
	return inner(skb, c, p);
}

/* under_in: a frame from the underlay. */
SEC("tc") int under_in(struct __sk_buff *skb)
{
	struct pkt p = {.l3 = ETH_LEN};
	struct conf *c = get_conf();
	struct meta *meta;

	if (!c || skb->pkt_type != PACKET_HOST || !is_ip(skb))
		return TC_ACT_UNSPEC;
	meta = (void *)(long)skb->data_meta;
	if ((void *)(meta + 1) <= (void *)(long)skb->data && meta->secret == c->secret) {
		p.tag = meta->iid & 0xffffff;
		p.flags = meta->flags;
		p.rloc = meta->rloc;
		if (parse(skb, &p))
			return drop(D_MALFORMED, 1, skb->len);
		return inner(skb, c, &p);
	}
	return decap(skb, c, &p, 0);
}

/* up_in: a frame from a D-ETR's upstream. What is for our EIDs comes into LISP here (PITR); a LISP
 * packet here cannot be from the cloud. */
SEC("tc") int up_in(struct __sk_buff *skb)
{
	struct pkt p = {.l3 = ETH_LEN};
	struct conf *c = get_conf();
	int rc;

	if (!c || skb->pkt_type != PACKET_HOST || !is_ip(skb))
		return TC_ACT_UNSPEC;
	rc = decap(skb, c, &p, 1);
	if (rc != TC_ACT_UNSPEC)
		return rc;
	if (parse(skb, &p))
		return TC_ACT_UNSPEC; /* the stack's to judge */
	if (!p.v6 && (c->flags & C_SERVICES4))
		p.service = find_service(&p.dst, TAG_OUT4);
	if (!p.service && !covered(&own4, &own6, &p.dst, p.tag))
		return TC_ACT_UNSPEC;
	if (covered(&own4, &own6, &p.src, p.tag))
		return drop(D_SPOOFED_SOURCE, p.segs, p.len);
	return onward(skb, c, &p);
}

/* door_in: a frame that Go wrote to lisp0. */
SEC("tc") int door_in(struct __sk_buff *skb)
{
	struct pkt p = {.l3 = ETH_LEN};
	struct conf *c = get_conf();
	u8 *f = (void *)(long)skb->data;
	int rc;

	if (!c || (void *)(f + ETH_LEN) > (void *)(long)skb->data_end)
		return TC_ACT_SHOT;
	if (f[0] != DOOR_MAGIC || !is_ip(skb))
		return drop(D_DOOR, 1, skb->len);
	if (f[1] == DOWN_NATIVE) {
		bpf_skb_change_type(skb, PACKET_HOST);
		return TC_ACT_OK;
	}
	if (f[1] != DOWN_FORWARD)
		return drop(D_DOOR, 1, skb->len);
	p.tag = (u32)f[2] << 16 | (u32)f[3] << 8 | f[4];
	p.flags = F_DOWN;
	if (f[5] & 1)
		p.flags |= F_COUNTED;
	if (f[5] & 2)
		p.flags |= F_REPLAY;
	if (f[5] & 4)
		p.flags |= F_TRANSIT;
	p.hold = (u32)f[6] << 8 | f[7];
	p.segs = 1;
	rc = TC_ACT_UNSPEC;
	if (p.flags & F_TRANSIT) /* or it went up with its outer headers, UP_SEGMENT */
		rc = decap(skb, c, &p, 0);
	if (rc == TC_ACT_UNSPEC) {
		if (parse(skb, &p))
			rc = drop(D_MALFORMED, 1, skb->len);
		else
			rc = inner(skb, c, &p);
	}
	reinjected(&p);
	return rc;
}

/* door_out: a frame that is given to lisp0: by the other programs, or by the host's stack. */
SEC("tc") int door_out(struct __sk_buff *skb)
{
	struct pkt p = {.l3 = ETH_LEN, .flags = F_STACK};
	struct conf *c = get_conf();
	u8 *f = (void *)(long)skb->data;

	if (!c || (void *)(f + ETH_LEN) > (void *)(long)skb->data_end)
		return TC_ACT_UNSPEC;
	if (f[0] == DOOR_MAGIC || !is_ip(skb))
		return TC_ACT_UNSPEC;
	if (parse(skb, &p))
		return drop(D_MALFORMED, 1, skb->len);
	if (never_forwarded(&p.dst, p.v6))
		return TC_ACT_UNSPEC;
	return onward(skb, c, &p);
}

/* translate is attached nowhere: it is run by hand on a packet, as if that came from the cloud, and translates
 * it for a way on of conf.mtu bytes. */
SEC("tc") int translate(struct __sk_buff *skb)
{
	struct pkt p = {.l3 = ETH_LEN, .flags = F_CLOUD | F_TRANSIT};
	struct conf *c = get_conf();
	int rc;

	if (!c || !is_ip(skb))
		return TC_ACT_UNSPEC;
	if (parse(skb, &p))
		return drop(D_MALFORMED, 1, skb->len);
	rc = plan(skb, &p);
	if (rc != TC_ACT_UNSPEC || !p.x)
		return rc;
	if (p.seglen > c->mtu || must_divide(c, &p))
		return up(skb, &p, UP_TOO_BIG, 0, c->mtu);
	rc = set_inner(skb, &p);
	return rc ? drop(-1 - rc, p.segs, p.len) : TC_ACT_OK;
}

/* clock tells Go the kernel's jiffies. */
SEC("tc") int clock(struct __sk_buff *skb)
{
	u32 zero = 0;
	u64 *j = bpf_map_lookup_elem(&jiffies, &zero);

	if (j)
		*j = bpf_jiffies64();
	return 0;
}

/* under_xdp decapsulates before the kernel merges segments, so that the inner ones are merged. All that
 * looks at inner addresses is left to under_in. */
SEC("xdp.frags") int under_xdp(struct xdp_md *x)
{
	void *d = (void *)(long)x->data, *e = (void *)(long)x->data_end;
	struct conf *c = get_conf();
	struct outer o = {};
	struct eth *eth = d, head;
	struct meta *meta;
	u8 ttl, tos;
	int rc, flags;
	void *in;

	if (!c || (void *)(eth + 1) > e)
		return XDP_PASS;
	if (eth->proto == bpf_htons(ETH_P_IP))
		rc = read_outer4(eth + 1, e, c, &o);
	else if (eth->proto == bpf_htons(ETH_P_IPV6))
		rc = read_outer6(eth + 1, e, c, &o);
	else
		return XDP_PASS;
	if (rc <= 0)
		return XDP_PASS; /* under_in counts what is broken */
	flags = judge(c, &o, 0);
	if (flags < 0)
		return XDP_PASS; /* and what is not allowed */
	head = *eth;
	in = d + ETH_LEN + (o.v6 ? OUTER6 : OUTER4);
	if (in + sizeof(struct ip4) > e)
		return XDP_PASS;
	switch (*(u8 *)in >> 4) {
	case 4: {
		struct ip4 *ip = in;

		ttl = ip->ttl;
		tos = ip->tos;
		if (merge(o.ttl, o.tos, &ttl, &tos))
			return XDP_PASS;
		head.proto = bpf_htons(ETH_P_IP);
		break;
	}
	case 6: {
		struct ip6 *ip = in;

		if ((void *)(ip + 1) > e)
			return XDP_PASS;
		ttl = ip->hops;
		tos = bpf_ntohl(ip->first) >> 20;
		if (merge(o.ttl, o.tos, &ttl, &tos))
			return XDP_PASS;
		head.proto = bpf_htons(ETH_P_IPV6);
		break;
	}
	default:
		return XDP_PASS;
	}
	if (bpf_xdp_adjust_meta(x, -(int)sizeof(*meta)))
		return XDP_PASS; /* the driver cannot; under_in does it all */
	if (bpf_xdp_adjust_head(x, o.v6 ? OUTER6 : OUTER4))
		return XDP_DROP;
	d = (void *)(long)x->data;
	e = (void *)(long)x->data_end;
	meta = (void *)(long)x->data_meta;
	eth = d;
	if ((void *)(meta + 1) > d || (void *)(eth + 1) + sizeof(struct ip4) > e)
		return XDP_DROP;
	*eth = head;
	meta->secret = c->secret;
	meta->iid = o.iid;
	meta->flags = flags;
	meta->rloc = o.rloc;
	if (head.proto == bpf_htons(ETH_P_IP)) {
		write_ttl_tos4((void *)(eth + 1), ttl, tos);
	} else {
		struct ip6 *ip = (void *)(eth + 1);

		if ((void *)(ip + 1) > e)
			return XDP_DROP;
		write_ttl_tos6(ip, ttl, tos);
	}
	return XDP_PASS;
}
