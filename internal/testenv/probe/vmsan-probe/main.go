// Command vmsan-probe runs in a guest. It reads a task as JSON and prints its
// results, or, with ports as its arguments, is a server that sends back what
// it gets and prints from where.
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"

	"github.com/vmsan/vmsan/internal/testenv/probe"
)

func main() {
	run := answer
	if len(os.Args) > 1 {
		run = func() error { return serve(os.Args[1:]) }
	}
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "vmsan-probe:", err)
		os.Exit(1)
	}
}

func answer() error {
	var task probe.Task
	if err := json.NewDecoder(os.Stdin).Decode(&task); err != nil {
		return fmt.Errorf("read task: %w", err)
	}
	return json.NewEncoder(os.Stdout).Encode(task.Run(context.Background()))
}

// serve listens on all addresses at each port, for TCP and UDP.
func serve(ports []string) error {
	failed := make(chan error)
	for _, port := range ports {
		listener, err := net.Listen("tcp", ":"+port)
		if err != nil {
			return err
		}
		packets, err := net.ListenPacket("udp", ":"+port)
		if err != nil {
			return err
		}
		go func() { failed <- serveTCP(listener) }()
		go func() { failed <- serveUDP(packets) }()
	}
	fmt.Println("ready")
	return <-failed
}

func serveTCP(listener net.Listener) error {
	for {
		conn, err := listener.Accept()
		if err != nil {
			return err
		}
		fmt.Println("tcp", conn.RemoteAddr(), conn.LocalAddr())
		go func() {
			defer conn.Close()
			io.Copy(conn, conn)
		}()
	}
}

func serveUDP(packets net.PacketConn) error {
	buffer := make([]byte, 1<<16)
	for {
		n, from, err := packets.ReadFrom(buffer)
		if err != nil {
			return err
		}
		fmt.Println("udp", from)
		packets.WriteTo(buffer[:n], from)
	}
}
