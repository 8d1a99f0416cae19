package guest_test

import (
	"os"
	"testing"

	"github.com/vmsan/vmsan/internal/testenv"
)

func TestMain(m *testing.M) { os.Exit(testenv.Main(m, testenv.BuildSystemdImage)) }
