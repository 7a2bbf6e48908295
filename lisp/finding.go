package lisp

// Finding is one thing that a daemon knows about an EID, for an operator who asks where it lives and why.
type Finding struct {
	Part string `json:"part"` // which part of the daemon says so: "map-cache", "registrations", ...
	Says string `json:"says"` // what it believes
	Why  string `json:"why"`  // what that belief rests on
}
