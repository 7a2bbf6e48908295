// Package libvirt is the controller's driver for hypervisors with libvirt, and where an agent hears of its VMs.
//
//	d, err := libvirt.New("qemu+tls://hv-7.example.net/system", slog.Default())
//
// # What a definition says of its VM
//
// A domain's <metadata> may say whose the VM is and which EIDs it has, in an element of the namespace [Namespace]. Who
// has no controller needs nothing else:
//
//	<domain type='kvm'>
//	  <name>web</name>
//	  <metadata>
//	    <tabi:vm xmlns:tabi="https://github.com/tabi-lisp/tabi/vm/1">
//	      <tabi:owner>alice</tabi:owner>
//	      <tabi:eid>198.51.100.10/32</tabi:eid>
//	      <tabi:eid>2001:db8:51::10/128</tabi:eid>
//	    </tabi:vm>
//	  </metadata>
//
// owner is one name, at most once. eid is a prefix or an address, any number of times; an instance-ID other than 0
// stands before it in brackets: [7]10.1.2.3/32. Both may be absent. [WithMetadata] writes the element into a definition;
// by hand, for a VM that runs and for its next start:
//
//	virsh metadata web --uri https://github.com/tabi-lisp/tabi/vm/1 --key tabi --live --config --set \
//	  '<vm><owner>alice</owner><eid>198.51.100.10/32</eid><eid>2001:db8:51::10/128</eid></vm>'
//	virsh metadata web --uri https://github.com/tabi-lisp/tabi/vm/1          # shows it
//
// libvirt carries the element along when the VM moves.
//
// # Connections
//
// Short questions share a connection, which is made when it is first needed and made again when it was lost. What takes
// long has one of its own: a watch, a hibernation, a migration (and a second, to see how far that is and to stop it).
package libvirt
