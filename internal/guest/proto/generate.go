// Package proto holds the guest API, as .proto files and the code generated from them: package process runs
// commands, filesystem deals with files, guestv1 is what only the host may ask.
package proto

//go:generate ./generate.sh
