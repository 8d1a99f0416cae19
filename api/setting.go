package api

// Setting is a flag's value where the flag is not typed.
type Setting struct {
	// Command is the command that it is for. Absent: all that have it.
	Command string `json:"command,omitempty"`
	Key     string `json:"key"`
	// Value is as it would be typed. A list has commas.
	Value string `json:"value"`
	// From is "default", the variable, like "$VMSAN_MEMORY", the line of the
	// config file, or the flag.
	From string `json:"from"`
}

// Settings are what config prints.
type Settings struct {
	// File is the config file, or where it would be.
	File     string    `json:"file"`
	Settings []Setting `json:"settings"`
}
