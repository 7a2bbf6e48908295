package stream

import (
	"net/netip"
	"time"
)

// ControlPort is the TCP port at which the program in a guest listens for requests: a line of JSON each, answered by a
// line of JSON, in turn. Any number of connections may be open. Requests may be repeated, as on a new connection when
// the old one has broken: doing one twice is doing it once.
const ControlPort = 4390

// Operations of requests.
const (
	OpHello     = "hello"       // say who you are
	OpOpen      = "open"        // open the ends of Open, counting what comes
	OpStart     = "start"       // send, on all ends of the session
	OpStop      = "stop"        // send no more; TCP sends its end
	OpReport    = "report"      // tell the counts of the session's ends
	OpEnd       = "end"         // close the session's ends and forget them
	OpDirty     = "dirty"       // write Rate MiB/s to memory from now on
	OpDiskWrite = "disk-write"  // write numbered blocks to the disk from now on
	OpDiskStop  = "disk-stop"   // finish the block that is being written, and no more
	OpDiskCheck = "disk-verify" // read all blocks that were written, and compare
)

// SessionIdle is how long a guest keeps a session of which it hears nothing, by its own clock.
const SessionIdle = 5 * time.Minute

// Request is what a guest is asked.
type Request struct {
	ID      uint64  `json:"id"` // comes back in the Reply
	Op      string  `json:"op"`
	Session uint64  `json:"session,omitempty"` // of OpOpen to OpEnd: whose streams
	Open    []End   `json:"open,omitempty"`
	Rate    float64 `json:"rate,omitempty"` // MiB/s of OpDirty, KiB/s of OpDiskWrite
	// Disk is the device of OpDisk..., e.g. /dev/vda; Blocks how many blocks of 4 KiB of it are written, in turn.
	Disk   string `json:"disk,omitempty"`
	Blocks int    `json:"blocks,omitempty"`
	// Sent says how many packets of a stream were sent, for the missing ranges in the Reply.
	Sent map[uint32]uint64 `json:"sent,omitempty"`
}

// Kinds of ends.
const (
	EndUDP    = "udp"
	EndPing   = "ping"   // echo requests to Remote, and their replies
	EndListen = "listen" // the server's end of a TCP connection, at Local
	EndDial   = "dial"   // the client's end of one, to Remote
)

// End is one end of a flow.
type End struct {
	Kind   string         `json:"kind"`
	Local  netip.AddrPort `json:"local"`
	Remote netip.AddrPort `json:"remote"`
	In     uint32         `json:"in,omitempty"`   // the stream that comes here, 0 = none
	Out    uint32         `json:"out,omitempty"`  // the stream that goes out from here, 0 = none
	Rate   int            `json:"rate,omitempty"` // packets a second that go out; bits a second with TCP
	Size   int            `json:"size,omitempty"` // bytes of payload
	Seed   uint64         `json:"seed,omitempty"` // of TCP's content
}

// Sent is what a sender did.
type Sent struct {
	Packets uint64 `json:"packets"`
	Errors  uint64 `json:"errors,omitempty"` // packets of Packets that the kernel did not take
	Error   string `json:"error,omitempty"`  // the last one
}

// Received is what a receiver saw.
type Received struct {
	Counts
	Drops   uint64      `json:"drops,omitempty"` // by the receiver's own socket
	Missing [][2]uint64 `json:"missing,omitempty"`
}

// Machine is a guest about itself.
type Machine struct {
	Name   string `json:"name"`
	BootID string `json:"boot_id"` // of the kernel: another one after a reboot
	// UDPDrops are datagrams that sockets had no room for; NICDrops frames that an interface, and BacklogDrops packets
	// that the kernel's input queue had none for. All since boot.
	UDPDrops     uint64 `json:"udp_drops"`
	NICDrops     uint64 `json:"nic_drops"`
	BacklogDrops uint64 `json:"backlog_drops"`
	// CPU is how many seconds the guest's program has worked, and Idle how many the guest had nothing to do.
	CPU  float64 `json:"cpu_s"`
	Idle float64 `json:"idle_s"`
	// Dirty is how many MiB were written to memory, see OpDirty.
	Dirty uint64 `json:"dirty_mib"`
}

// Disk is what became of the blocks on a disk.
type Disk struct {
	Written uint64 `json:"written"` // writes that the disk has confirmed
	Checked uint64 `json:"checked"` // blocks that were read
	// Wrong are blocks that are not what was last written there.
	Wrong uint64 `json:"wrong"`
	First string `json:"first,omitempty"` // what the first wrong one looks like
	Error string `json:"error,omitempty"` // of the writer, which has ended then
}

// Reply is what a guest answers.
type Reply struct {
	ID        uint64                   `json:"id"`
	Error     string                   `json:"error,omitempty"`
	Sent      map[uint32]Sent          `json:"sent,omitempty"`
	Received  map[uint32]Received      `json:"received,omitempty"`
	Transfers map[uint32]TransferState `json:"transfers,omitempty"` // of TCP's streams, this end of each
	Machine   *Machine                 `json:"machine,omitempty"`
	Disk      *Disk                    `json:"disk,omitempty"`
}
