package api

// Bench is what bench has measured.
type Bench struct {
	Driver      string `json:"driver"`
	Accelerator string `json:"accelerator"`
	// VMM is the virtual machine monitor with its version, Kernel the guest's,
	// Host the host's.
	VMM     string        `json:"vmm"`
	CPU     string        `json:"cpu"`
	CPUs    int           `json:"cpus"`
	Kernel  string        `json:"kernel"`
	Host    string        `json:"host"`
	Figures []BenchFigure `json:"figures"`
}

// BenchFigure is how long something takes, or how much of it is done in a second,
// beside what the same takes without vmsan in between.
type BenchFigure struct {
	Name string `json:"name"`
	// Unit is that of Value and Floor: s, of which less is better, or B/s.
	Unit    string  `json:"unit"`
	Value   float64 `json:"value"`
	Floor   float64 `json:"floor"`
	FloorIs string  `json:"floorIs"`
}
