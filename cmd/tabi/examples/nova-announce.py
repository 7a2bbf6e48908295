#!/usr/bin/env python3
"""Tells tabi of live migrations that OpenStack Nova starts.

Nova says "instance.live_migration_pre.start" on its message bus when the target compute host begins to prepare, before
memory is copied; this program hears that and announces the VM to tabi's controller. Run it anywhere that reaches both,
two of them if you like: an announcement may be made twice.

Nova's configuration, on the compute hosts:

    [notifications]
    notification_format = versioned        # or both
    versioned_notifications_topics = versioned_notifications,tabi

A topic of our own ("tabi") leaves the others' notifications to the others. Needs oslo.messaging, which every OpenStack
host has. Then:

    TABI_CONTROLLER=http://192.0.2.9:4381 TABI_TOKEN=s3cret nova-announce.py rabbit://user:password@host:5672/

To try it, one notification as JSON on standard input:

    nova-announce.py --stdin < notification.json

Hypervisors are known to tabi by the host names that Nova has for them; TABI_HOSTS maps others: "compute1=nezu-hv1 ...".
VMs are known by Nova's UUID, which is libvirt's too.
"""

import json
import os
import sys
import urllib.request

CONTROLLER = os.environ.get("TABI_CONTROLLER", "http://127.0.0.1:4381")
TOKEN = os.environ.get("TABI_TOKEN", "")
HOSTS = dict(pair.split("=", 1) for pair in os.environ.get("TABI_HOSTS", "").split())
TOPIC = os.environ.get("TABI_TOPIC", "tabi")


def announcement(publisher_id, event_type, payload):
    """Returns what to announce, or None. The publisher, "nova-compute:HOST", is the target."""
    if event_type != "instance.live_migration_pre.start":
        return None
    instance = payload["nova_object.data"]
    target = publisher_id.split(":", 1)[1]
    return {"uuid": instance["uuid"], "to": HOSTS.get(target, target)}


def announce(publisher_id, event_type, payload):
    """Announces a VM; a migration goes on whatever comes of it."""
    try:
        body = announcement(publisher_id, event_type, payload)
        if body is None:
            return
        request = urllib.request.Request(
            CONTROLLER + "/v1/announcements",
            data=json.dumps(body).encode(),
            headers={"Authorization": "Bearer " + TOKEN, "Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=2):
            print("announced", json.dumps(body), flush=True)
    except Exception as problem:  # whatever is wrong with one notification, the next one may be good
        print("tabi was not told of %s by %s: %s" % (event_type, publisher_id, problem), file=sys.stderr, flush=True)


class Endpoint:
    """What oslo.messaging calls: a method for each priority; Nova's live migrations are "info"."""

    def info(self, ctxt, publisher_id, event_type, payload, metadata):
        announce(publisher_id, event_type, payload)


def main():
    if len(sys.argv) != 2:
        sys.exit("usage: nova-announce.py TRANSPORT-URL | --stdin")
    if sys.argv[1] == "--stdin":
        n = json.load(sys.stdin)
        announce(n["publisher_id"], n["event_type"], n["payload"])
        return
    from oslo_config import cfg
    import oslo_messaging

    transport = oslo_messaging.get_notification_transport(cfg.CONF, url=sys.argv[1])
    listener = oslo_messaging.get_notification_listener(
        transport, [oslo_messaging.Target(topic=TOPIC)], [Endpoint()], executor="threading"
    )
    listener.start()
    listener.wait()


if __name__ == "__main__":
    main()
