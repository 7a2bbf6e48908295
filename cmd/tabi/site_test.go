package main

import "testing"

func TestSiteLends(t *testing.T) {
	liveAPI(t)
	prints(t, "site nezu added\n", "site", "set", "nezu", "--owner", "wide", "--shared-storage", "nfs1=/srv/vms")
	prints(t, "site            nezu\nowners          wide\nshared-storage  nfs1=/srv/vms\nlends           nothing\n", "site", "show", "nezu")
	prints(t, "site nezu set\n", "site", "set", "nezu", "--lend-owners", "alice,bob", "--lend-vms", "camp-*", "--from", "camp", "--lend-cpus", "8", "--lend-memory", "16G")
	prints(t, "site nezu set\n", "site", "set", "nezu", "--lend-cpus", "4")
	prints(t, `
site             nezu
owners           wide
shared-storage   nfs1=/srv/vms
lends to owners  alice bob
lends to vms     camp-*
from sites       camp
cpus             4
memory           16 GiB
`, "site", "show", "nezu")
	prints(t, "site nara added\n", "site", "set", "nara", "--lend-nothing")
	prints(t, "site tokyo added\n", "site", "set", "tokyo", "--lend-owners", "*")
	prints(t, `
NAME   OWNERS  LENDS                                           SHARED         DESCRIPTION
nara   -       nothing                                         -              -
nezu   wide    to alice,bob,camp-*; 4 CPUs; 16 GiB; from camp  nfs1=/srv/vms  -
tokyo  -       to *                                            -              -
`, "site", "list")
	prints(t, "site nezu set\n", "site", "set", "nezu", "--lend-vms", "", "--from", "", "--lend-memory", "0")
	prints(t, `
site             nezu
owners           wide
shared-storage   nfs1=/srv/vms
lends to owners  alice bob
from sites       any
cpus             4
memory           as much as there is
`, "site", "show", "nezu")
	prints(t, "site nezu set\n", "site", "set", "nezu", "--open")
	prints(t, "site            nezu\nshared-storage  nfs1=/srv/vms\nlends           open\n", "site", "show", "nezu")

	fails(t, `--lend-memory: "lots" is no amount of memory`, "site", "set", "nezu", "--lend-memory", "lots")
	fails(t, "in the group [lend-nothing lend-cpus]", "site", "set", "nezu", "--lend-nothing", "--lend-cpus", "3")
	fails(t, "want an absolute path", "site", "set", "nezu", "--shared-storage", "vms")
}
