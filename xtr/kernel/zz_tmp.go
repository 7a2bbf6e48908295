package kernel

// Temporary (uncommitted) so that cmd builds: delete this file when the real ProgramCost is written. These are the
// types that cmd/internal/bench expects; please use them.

import "context"

// ProgramTime is what one packet costs in one program.
type ProgramTime struct {
	Program string        `json:"program"`
	Cost    []ProgramCostAt `json:"cost"`
}

// ProgramCostAt is the cost with a table of some size.
type ProgramCostAt struct {
	Mappings    int     `json:"mappings"`
	Nanoseconds float64 `json:"ns_per_packet"`
}

// ProgramCost measures.
func ProgramCost(ctx context.Context, sizes ...int) ([]ProgramTime, error) { return nil, nil }
