package vmsantest

import (
	"context"
	"strings"
	"sync"
	"time"

	"github.com/vmsan/vmsan"
	"github.com/vmsan/vmsan/api"
)

// journal keeps all that happened. Its zero value is empty.
type journal struct {
	mu     sync.Mutex // guards what follows
	events []api.Event
	more   chan struct{} // closed with the next one; made when somebody waits
}

func (j *journal) add(e api.Event) {
	j.mu.Lock()
	defer j.mu.Unlock()
	e.Time = time.Now().UTC()
	j.events = append(j.events, e)
	if j.more != nil {
		close(j.more)
		j.more = nil
	}
}

// note adds what hooks are told of, if it is an event too.
func (j *journal) note(h api.HookEvent) {
	types := map[api.Hook][]api.EventType{
		api.HookAfterCreate:         {api.EventVMCreate, api.EventVMRunning},
		api.HookAfterStart:          {api.EventVMStart, api.EventVMRunning},
		api.HookAfterStop:           {api.EventVMStop},
		api.HookAfterRemove:         {api.EventVMRemove},
		api.HookSnapshotAfterCreate: {api.EventSnapshotCreate},
		api.HookNetworkPolicyChange: {api.EventVMPolicy},
	}
	for _, t := range types[h.Hook] {
		e := api.Event{Type: t, VM: h.VM}
		if h.State != nil {
			e.Name = h.State.Name
		}
		j.add(e)
	}
}

// since returns the events from the n-th on, and what tells of the next.
func (j *journal) since(n int) ([]api.Event, <-chan struct{}) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.more == nil {
		j.more = make(chan struct{})
	}
	return j.events[n:len(j.events):len(j.events)], j.more
}

func chosen(f vmsan.EventFilter, e api.Event) bool {
	noun, _, _ := strings.Cut(string(e.Type), ".")
	return !e.Time.Before(f.Since) && (f.VM == "" || f.VM == e.VM || f.VM == e.Name) &&
		(f.Type == "" || f.Type == string(e.Type) || f.Type == noun)
}

// Events implements vmsan.Service.
func (s *Service) Events(_ context.Context, filter vmsan.EventFilter) ([]api.Event, error) {
	all, _ := s.journal.since(0)
	list := []api.Event{}
	for _, e := range all {
		if chosen(filter, e) {
			list = append(list, e)
		}
	}
	return list, nil
}

// FollowEvents implements vmsan.Service.
func (s *Service) FollowEvents(ctx context.Context, filter vmsan.EventFilter, show func(api.Event) error) error {
	for seen := 0; ; {
		events, more := s.journal.since(seen)
		for _, e := range events {
			if !chosen(filter, e) {
				continue
			}
			if err := show(e); err != nil {
				return err
			}
		}
		seen += len(events)
		select {
		case <-more:
		case <-ctx.Done():
			return nil
		}
	}
}
