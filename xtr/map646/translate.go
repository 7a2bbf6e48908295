package map646

// call is one packet on its way through a Translator.
type call struct {
	t      *Translator
	o      Options
	s      *Scratch
	packet []byte
}

func (c *call) run() Result { return Result{} }
