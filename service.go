package vmsan

import (
	"context"
	"time"

	"github.com/vmsan/vmsan/api"
	"github.com/vmsan/vmsan/internal/guest"
	"github.com/vmsan/vmsan/internal/sandbox"
	"github.com/vmsan/vmsan/internal/snapshot"
	"github.com/vmsan/vmsan/internal/store"
)

// service is the Service of this host.
type service struct{ inner *sandbox.Service }

// show turns the record of a verb into what callers see.
func show(r *store.Record, err error) (api.VM, error) {
	if err != nil {
		return api.VM{}, err
	}
	return r.Show(), nil
}

func showAll(records []*store.Record, err error) ([]api.VM, error) {
	if err != nil {
		return nil, err
	}
	vms := []api.VM{}
	for _, r := range records {
		vms = append(vms, r.Show())
	}
	return vms, nil
}

func showSnapshots(manifests []snapshot.Manifest, err error) ([]api.Snapshot, error) {
	if err != nil {
		return nil, err
	}
	shown := []api.Snapshot{}
	for _, m := range manifests {
		shown = append(shown, m.Show())
	}
	return shown, nil
}

func (s *service) List(ctx context.Context, filter Filter) ([]api.VM, error) {
	return showAll(s.inner.List(ctx, sandbox.Filter(filter)))
}

func (s *service) Get(ctx context.Context, vm string) (api.VM, error) {
	return show(s.inner.Get(ctx, vm))
}

func (s *service) Create(ctx context.Context, o CreateOptions) (api.VM, error) {
	options, err := o.parse()
	if err != nil {
		return api.VM{}, err
	}
	return show(s.inner.Create(ctx, options))
}

func (s *service) Start(ctx context.Context, vm string) (api.VM, error) {
	return show(s.inner.Start(ctx, vm))
}

func (s *service) Stop(ctx context.Context, vm string, grace time.Duration) (api.VM, error) {
	before, err := s.inner.Stop(ctx, vm, grace)
	if err != nil {
		return api.VM{}, err
	}
	now, err := s.inner.Get(ctx, before.ID)
	if before.Ephemeral && api.HasCode(err, api.ErrVMNotFound) {
		// It went with its end.
		gone := *before
		gone.Status, gone.Host = api.StatusStopped, store.Host{}
		return gone.Show(), nil
	}
	return show(now, err)
}

func (s *service) Pause(ctx context.Context, vm string) (api.VM, error) {
	return show(s.inner.Pause(ctx, vm, false))
}

func (s *service) Resume(ctx context.Context, vm string) (api.VM, error) {
	return show(s.inner.Resume(ctx, vm))
}

func (s *service) Extend(ctx context.Context, vm string, d time.Duration) (api.VM, error) {
	return show(s.inner.Extend(ctx, vm, d))
}

func (s *service) Events(ctx context.Context, filter EventFilter) ([]api.Event, error) {
	f := sandbox.EventFilter(filter)
	if err := f.Check(); err != nil {
		return nil, err
	}
	return s.inner.Events(ctx, f)
}

func (s *service) FollowEvents(ctx context.Context, filter EventFilter, show func(api.Event) error) error {
	f := sandbox.EventFilter(filter)
	if err := f.Check(); err != nil {
		return err
	}
	return s.inner.FollowEvents(ctx, f, show)
}

func (s *service) Wait(ctx context.Context, vm string) (api.VM, error) {
	return show(s.inner.Wait(ctx, vm))
}

func (s *service) Remove(ctx context.Context, vm string, force bool) error {
	_, err := s.inner.Remove(ctx, vm, force)
	return err
}

func (s *service) Snapshot(ctx context.Context, vm, name string) (api.Snapshot, error) {
	m, paused, err := s.inner.CreateSnapshot(ctx, vm, name, false)
	if err != nil {
		return api.Snapshot{}, err
	}
	shown := m.Show()
	shown.PausedMS = float64(paused.Microseconds()) / 1000
	return shown, nil
}

func (s *service) Snapshots(context.Context) ([]api.Snapshot, error) {
	return showSnapshots(s.inner.Snapshots())
}

func (s *service) DeleteSnapshot(ctx context.Context, snapshot string) error {
	_, err := s.inner.DeleteSnapshot(ctx, snapshot)
	return err
}

func (s *service) Fork(ctx context.Context, vm string, count int, name string) ([]api.VM, error) {
	forks, _, err := s.inner.Fork(ctx, vm, count, name)
	return showAll(forks, err)
}

func (s *service) Exec(ctx context.Context, vm string, command Command) (Exit, error) {
	if err := command.check(); err != nil {
		return Exit{}, err
	}
	record, client, err := s.guest(ctx, vm)
	if err != nil {
		return Exit{}, err
	}
	defer client.Close()
	exit, err := client.Run(ctx, guest.Command(command))
	if err != nil {
		return Exit{}, s.inner.Explain(ctx, record, err)
	}
	return Exit(exit), nil
}

// guest is a way to the guest of a sandbox that runs.
func (s *service) guest(ctx context.Context, vm string) (*store.Record, *guest.Client, error) {
	record, err := s.inner.Get(ctx, vm)
	if err != nil {
		return nil, nil, err
	}
	client, err := s.inner.Guest(record)
	return record, client, err
}

func (s *service) Copy(ctx context.Context, source, destination string) (api.Copied, error) {
	o := sandbox.CopyOptions{Source: sandbox.ParseLocation(source), Destination: sandbox.ParseLocation(destination)}
	for _, end := range []sandbox.Location{o.Source, o.Destination} {
		if end == (sandbox.Location{Path: "-"}) {
			return api.Copied{}, api.Errorf(api.ErrValidationPath, "Invalid path: \"-\", which is a stream of the command line.").
				WithHint("./- is a file of that name")
		}
	}
	totals, err := s.inner.Copy(ctx, o)
	return api.Copied(totals), err
}

func (s *service) SetNetworkPolicy(ctx context.Context, vm string, p api.NetworkPolicy, kill bool) (api.NetworkChange, error) {
	next, err := parsePolicy(p)
	if err != nil {
		return api.NetworkChange{}, err
	}
	r, previous, killed, err := s.inner.SetPolicy(ctx, vm, sandbox.Replace(next), kill)
	if err != nil {
		return api.NetworkChange{}, err
	}
	return api.NetworkChange{
		VM: r.ID, Previous: store.ShowPolicy(previous), Current: store.ShowPolicy(r.Spec.Policy), Killed: killed,
	}, nil
}
