package timing

import (
	"testing"
	"time"
)

func TestMedian(t *testing.T) {
	for _, c := range []struct {
		figures []time.Duration
		want    time.Duration
	}{
		{[]time.Duration{7}, 7},
		{[]time.Duration{9, 1}, 5},
		{[]time.Duration{100, 3, 2}, 3},
		{[]time.Duration{100, 2, 6, 1}, 4},
	} {
		if got := Median(c.figures); got != c.want {
			t.Errorf("the median of %v is %d, not %d", c.figures, got, c.want)
		}
	}
}
