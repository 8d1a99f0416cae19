package agent

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"github.com/moby/sys/user"
)

// account is whom a command runs as, or a file is made for.
type account struct {
	name   string // empty if /etc/passwd does not know the uid
	uid    uint32
	gid    uint32
	groups []uint32 // supplementary
	home   string
}

// errUnknownUser is returned for a user, or group, /etc does not list.
var errUnknownUser = errors.New("unknown user")

// accounts looks users up in the passwd and group files of one /etc.
type accounts struct {
	etc string
}

// lookup resolves a name, uid, uid:gid or name:group. A uid need not be listed, a name must.
func (a accounts) lookup(spec string) (account, error) {
	who, group, hasGroup := strings.Cut(spec, ":")
	if who == "" || (hasGroup && group == "") {
		return account{}, errUnknownUser
	}
	found, err := a.user(who)
	if err != nil {
		return account{}, err
	}
	groups, err := a.groups()
	if err != nil {
		return account{}, err
	}
	if hasGroup {
		if found.gid, err = groupNumber(groups, group); err != nil {
			return account{}, err
		}
	}
	found.groups = memberships(groups, found)
	return found, nil
}

// user finds a name or uid. Root is there even without a passwd file.
func (a accounts) user(who string) (account, error) {
	number, numeric := accountNumber(who)
	users, err := a.users(func(u user.User) bool {
		return u.Name == who || (numeric && u.Uid == int(number))
	})
	if err != nil {
		return account{}, err
	}
	// A name of digits is a name first, as chown(1) has it.
	if i := slices.IndexFunc(users, func(u user.User) bool { return u.Name == who }); i >= 0 {
		return newAccount(users[i])
	}
	if len(users) > 0 {
		return newAccount(users[0])
	}
	if who == "root" || (numeric && number == 0) {
		return account{name: "root", home: "/root"}, nil
	}
	if numeric {
		return account{uid: number, gid: number, home: "/"}, nil
	}
	return account{}, errUnknownUser
}

func newAccount(u user.User) (account, error) {
	if u.Uid < 0 || u.Gid < 0 || int64(u.Uid) > maxID || int64(u.Gid) > maxID {
		return account{}, fmt.Errorf("user %s has an id out of range", u.Name)
	}
	home := u.Home
	if !filepath.IsAbs(home) {
		home = "/"
	}
	return account{name: u.Name, uid: uint32(u.Uid), gid: uint32(u.Gid), home: home}, nil
}

// maxID is the last valid uid or gid: the one after it means "leave as it is" to the kernel.
const maxID = 1<<32 - 2

func accountNumber(s string) (uint32, bool) {
	n, err := strconv.ParseUint(s, 10, 32)
	return uint32(n), err == nil && n <= maxID
}

func groupNumber(groups []user.Group, wanted string) (uint32, error) {
	for _, g := range groups {
		if g.Name == wanted && g.Gid >= 0 && int64(g.Gid) <= maxID {
			return uint32(g.Gid), nil
		}
	}
	if number, ok := accountNumber(wanted); ok {
		return number, nil
	}
	return 0, errUnknownUser
}

func memberships(groups []user.Group, of account) []uint32 {
	if of.name == "" {
		return nil
	}
	var member []uint32
	for _, g := range groups {
		if g.Gid >= 0 && int64(g.Gid) <= maxID && slices.Contains(g.List, of.name) {
			member = append(member, uint32(g.Gid))
		}
	}
	slices.Sort(member)
	return slices.Compact(member)
}

func (a accounts) users(filter func(user.User) bool) ([]user.User, error) {
	file, err := a.open("passwd")
	if err != nil || file == nil {
		return nil, err
	}
	defer file.Close()
	users, err := user.ParsePasswdFilter(io.LimitReader(file, maxAccountFile), filter)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", file.Name(), err)
	}
	return users, nil
}

func (a accounts) groups() ([]user.Group, error) {
	file, err := a.open("group")
	if err != nil || file == nil {
		return nil, err
	}
	defer file.Close()
	groups, err := user.ParseGroupFilter(io.LimitReader(file, maxAccountFile), nil)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", file.Name(), err)
	}
	return groups, nil
}

// open returns no file if there is none: an image need not have users.
func (a accounts) open(name string) (*os.File, error) {
	file, err := os.Open(filepath.Join(a.etc, name))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return file, err
}

// names tells what a file's owner and group are called; their numbers if /etc does not say.
func (a accounts) names() *ownerNames {
	return &ownerNames{accounts: a}
}

// ownerNames remembers names for the length of one request.
type ownerNames struct {
	accounts accounts
	users    map[int]string
	groups   map[int]string
}

func (o *ownerNames) user(uid uint32) string {
	if o.users == nil {
		o.users = map[int]string{}
		users, _ := o.accounts.users(nil)
		for _, u := range slices.Backward(users) { // the first entry of a uid names it
			o.users[u.Uid] = u.Name
		}
	}
	return nameOr(o.users, uid)
}

func (o *ownerNames) group(gid uint32) string {
	if o.groups == nil {
		o.groups = map[int]string{}
		groups, _ := o.accounts.groups()
		for _, g := range slices.Backward(groups) {
			o.groups[g.Gid] = g.Name
		}
	}
	return nameOr(o.groups, gid)
}

func nameOr(names map[int]string, id uint32) string {
	if name, ok := names[int(id)]; ok {
		return name
	}
	return strconv.FormatUint(uint64(id), 10)
}

// credential is nil where there is nothing to change, so that an agent that is not root can run commands
// as itself.
func (a account) credential() *syscall.Credential {
	if os.Geteuid() != 0 && a.uid == uint32(os.Geteuid()) && a.gid == uint32(os.Getegid()) {
		return nil
	}
	return &syscall.Credential{Uid: a.uid, Gid: a.gid, Groups: a.groups}
}

// mayExecute tells if the permission bits let the account run a file.
func (a account) mayExecute(stat *syscall.Stat_t) bool {
	if a.uid == 0 {
		return stat.Mode&0o111 != 0
	}
	if stat.Uid == a.uid {
		return stat.Mode&0o100 != 0
	}
	if stat.Gid == a.gid || slices.Contains(a.groups, stat.Gid) {
		return stat.Mode&0o010 != 0
	}
	return stat.Mode&0o001 != 0
}
