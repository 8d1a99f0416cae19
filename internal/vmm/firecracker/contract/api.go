package contract

import (
	"bytes"
	"encoding/json"
	"fmt"
	"regexp"
	"slices"
	"strings"
)

// kind is what a field's value is.
type kind int

const (
	text kind = iota
	number
	truth
	object
)

// field is a field of a body.
type field struct {
	name     string
	kind     kind
	required bool
	choices  []string // of a text
	least    float64  // of a number
	most     float64  // 0: any
	fields   []field  // of an object
}

// stage is when a request is taken.
type stage int

const (
	always stage = iota
	beforeBoot
	afterBoot
)

// endpoint is what Firecracker takes, by its API's description. What is not
// here vmsan does not use.
type endpoint struct {
	method string
	path   string // below which an id may follow, as {field}
	stage  stage
	fields []field
}

var tokenBucket = []field{
	{name: "size", kind: number, required: true}, {name: "refill_time", kind: number, required: true},
	{name: "one_time_burst", kind: number},
}

var rateLimiter = []field{
	{name: "bandwidth", kind: object, fields: tokenBucket}, {name: "ops", kind: object, fields: tokenBucket},
}

var endpoints = []endpoint{
	{method: "GET", path: "/"},
	{method: "GET", path: "/version"},
	{method: "GET", path: "/vm/config"},
	{method: "PUT", path: "/logger", stage: beforeBoot, fields: []field{
		{name: "log_path"}, {name: "level", choices: []string{"Error", "Warning", "Info", "Debug", "Trace", "Off"}},
		{name: "show_level", kind: truth}, {name: "show_log_origin", kind: truth}, {name: "module"},
	}},
	{method: "PUT", path: "/machine-config", stage: beforeBoot, fields: []field{
		{name: "vcpu_count", kind: number, required: true, least: 1, most: 32},
		{name: "mem_size_mib", kind: number, required: true, least: 1},
		{name: "smt", kind: truth}, {name: "track_dirty_pages", kind: truth},
		{name: "huge_pages", choices: []string{"None", "Transparent", "2M"}}, {name: "cpu_template"},
	}},
	{method: "PUT", path: "/boot-source", stage: beforeBoot, fields: []field{
		{name: "kernel_image_path", required: true}, {name: "initrd_path"}, {name: "boot_args"},
	}},
	{method: "PUT", path: "/drives/{drive_id}", stage: beforeBoot, fields: []field{
		{name: "drive_id", required: true}, {name: "is_root_device", kind: truth, required: true},
		{name: "path_on_host"}, {name: "is_read_only", kind: truth}, {name: "partuuid"}, {name: "socket"},
		{name: "cache_type", choices: []string{"Unsafe", "Writeback"}}, {name: "io_engine", choices: []string{"Sync", "Async"}},
		{name: "rate_limiter", kind: object, fields: rateLimiter},
	}},
	{method: "PUT", path: "/network-interfaces/{iface_id}", stage: beforeBoot, fields: []field{
		{name: "iface_id", required: true}, {name: "host_dev_name", required: true}, {name: "guest_mac"},
		{name: "rx_rate_limiter", kind: object, fields: rateLimiter}, {name: "tx_rate_limiter", kind: object, fields: rateLimiter},
	}},
	{method: "PUT", path: "/vsock", stage: beforeBoot, fields: []field{
		{name: "guest_cid", kind: number, required: true, least: 3}, {name: "uds_path", required: true},
	}},
	{method: "PUT", path: "/entropy", stage: beforeBoot, fields: []field{{name: "rate_limiter", kind: object, fields: rateLimiter}}},
	{method: "PUT", path: "/actions", fields: []field{
		{name: "action_type", required: true, choices: []string{"FlushMetrics", "InstanceStart", "SendCtrlAltDel"}},
	}},
	{method: "PUT", path: "/balloon", stage: beforeBoot, fields: []field{
		{name: "amount_mib", kind: number, required: true}, {name: "deflate_on_oom", kind: truth, required: true},
		{name: "stats_polling_interval_s", kind: number},
	}},
	{method: "PATCH", path: "/balloon", stage: afterBoot, fields: []field{{name: "amount_mib", kind: number, required: true}}},
	{method: "PATCH", path: "/drives/{drive_id}", stage: afterBoot, fields: []field{
		{name: "drive_id", required: true}, {name: "path_on_host"}, {name: "rate_limiter", kind: object, fields: rateLimiter},
	}},
	{method: "PATCH", path: "/vm", stage: afterBoot, fields: []field{{name: "state", required: true, choices: []string{"Paused", "Resumed"}}}},
	{method: "PUT", path: "/snapshot/create", stage: afterBoot, fields: []field{
		{name: "snapshot_path", required: true}, {name: "mem_file_path", required: true},
		{name: "snapshot_type", choices: []string{"Full", "Diff"}},
	}},
	{method: "PUT", path: "/snapshot/load", stage: beforeBoot, fields: []field{
		{name: "snapshot_path", required: true}, {name: "track_dirty_pages", kind: truth}, {name: "resume_vm", kind: truth},
		{name: "mem_backend", kind: object, required: true, fields: []field{
			{name: "backend_type", required: true, choices: []string{"File", "Uffd"}}, {name: "backend_path", required: true},
		}},
	}},
}

// The faults that belong to no one request.
const (
	faultPostBoot = "The requested operation is not supported after starting the microVM."
	faultPreBoot  = "The requested operation is not supported before starting the microVM."
)

var resourceID = regexp.MustCompile(`^[A-Za-z0-9_]+$`)

// find returns the endpoint of a request, and the id in its path.
func find(method, path string) (e endpoint, id string, err error) {
	for _, e := range endpoints {
		head, name, _ := strings.Cut(e.path, "{")
		switch {
		case e.method != method:
		case name == "" && path == e.path:
			return e, "", nil
		case name != "" && strings.HasPrefix(path, head):
			id := strings.TrimPrefix(path, head)
			if !resourceID.MatchString(id) {
				return e, "", faultf("API Resource IDs can only contain alphanumeric characters and underscores.")
			}
			return e, id, nil
		}
	}
	return e, "", faultf("Invalid request method and/or path: %s %s.", method, path)
}

// check compares a body with what its endpoint takes, and with the id in the
// path.
func (e endpoint) check(body []byte, id string) error {
	var fields map[string]any
	if e.method == "GET" {
		if len(body) > 0 {
			return faultf("GET request cannot have a body.")
		}
		return nil
	}
	decoder := json.NewDecoder(bytes.NewReader(body))
	if err := decoder.Decode(&fields); err != nil {
		return malformed("%v", err)
	}
	if err := checkFields(e.fields, fields); err != nil {
		return err
	}
	_, name, _ := strings.Cut(strings.TrimSuffix(e.path, "}"), "{")
	if name != "" && fields[name] != id {
		return faultf("The id from the path [%s] does not match the id from the body [%v]!", id, fields[name])
	}
	return nil
}

func malformed(format string, args ...any) error {
	return faultf("An error occurred when deserializing the json body of a request: %s.", fmt.Sprintf(format, args...))
}

func checkFields(known []field, got map[string]any) error {
	for name, value := range got {
		i := slices.IndexFunc(known, func(f field) bool { return f.name == name })
		if i < 0 {
			return malformed("unknown field `%s`", name)
		}
		if err := known[i].check(value); err != nil {
			return err
		}
	}
	for _, f := range known {
		if _, ok := got[f.name]; f.required && !ok {
			return malformed("missing field `%s`", f.name)
		}
	}
	return nil
}

func (f field) check(value any) error {
	switch v := value.(type) {
	case string:
		if f.kind != text || f.choices != nil && !slices.Contains(f.choices, v) {
			return malformed("unknown variant `%s` of `%s`", v, f.name)
		}
	case float64:
		if f.kind != number || v != float64(int64(v)) || v < f.least || f.most > 0 && v > f.most {
			return malformed("invalid value: %v for `%s`", v, f.name)
		}
	case bool:
		if f.kind != truth {
			return malformed("invalid type: boolean for `%s`", f.name)
		}
	case map[string]any:
		if f.kind != object {
			return malformed("invalid type: map for `%s`", f.name)
		}
		return checkFields(f.fields, v)
	default:
		return malformed("invalid type for `%s`", f.name)
	}
	return nil
}
