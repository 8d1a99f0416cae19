package api

// Health is what a check of the host comes to.
type Health string

// The outcomes of a check.
const (
	HealthPass Health = "pass"
	HealthWarn Health = "warn" // sandboxes work, but not as they could
	HealthFail Health = "fail" // something does not work
)

// Finding is what a check found.
type Finding struct {
	Check  string `json:"check"`
	Status Health `json:"status"`
	// Detail is a sentence on it, Remedy what to do, with a command to type.
	Detail string `json:"detail"`
	Remedy string `json:"remedy,omitempty"`
	// Fixed is what --fix has mended.
	Fixed []string `json:"fixed,omitempty"`
}

// Diagnosis is what doctor prints.
type Diagnosis struct {
	Findings []Finding `json:"findings"`
	Passed   int       `json:"passed"`
	Warned   int       `json:"warned"`
	Failed   int       `json:"failed"`
}

// Check is something that doctor can look at.
type Check struct {
	Name  string `json:"name"`
	About string `json:"about"`
}

// Leftover is something of a dead sandbox, or of a command that was killed.
type Leftover struct {
	What string `json:"what"`
	VM   string `json:"vm,omitempty"`
	// Kept says why it was left alone; Error, why it could not be removed.
	Kept  string `json:"kept,omitempty"`
	Error string `json:"error,omitempty"`
}

// Collection is what gc prints.
type Collection struct {
	// Removed is what was, or with --dry-run would be, removed.
	Removed []Leftover `json:"removed"`
	// Kept is what looks like leftovers and cannot be proved to be.
	Kept []Leftover `json:"kept"`
	// Failed is what could not be removed.
	Failed []Leftover `json:"failed"`
}
