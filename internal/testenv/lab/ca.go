package lab

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"sync"
	"time"
)

// CA signs a certificate for whatever name a client asks for.
type CA struct {
	certificate *x509.Certificate
	key         *ecdsa.PrivateKey

	mu     sync.Mutex
	issued map[string]*tls.Certificate
}

// maxIssued bounds the certificates that are kept.
const maxIssued = 1024

func newCA() (*CA, error) {
	ca := &CA{issued: map[string]*tls.Certificate{}}
	var err error
	if ca.key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
		return nil, err
	}
	ca.certificate = template("the lab's authority")
	ca.certificate.IsCA, ca.certificate.BasicConstraintsValid = true, true
	ca.certificate.KeyUsage = x509.KeyUsageCertSign
	raw, err := x509.CreateCertificate(rand.Reader, ca.certificate, ca.certificate, ca.key.Public(), ca.key)
	if err != nil {
		return nil, fmt.Errorf("make authority: %w", err)
	}
	ca.certificate, err = x509.ParseCertificate(raw)
	return ca, err
}

// template is valid for as long as a guest's clock may be wrong.
func template(name string) *x509.Certificate {
	return &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()),
		Subject:      pkix.Name{CommonName: name},
		NotBefore:    time.Now().AddDate(-1, 0, 0),
		NotAfter:     time.Now().AddDate(1, 0, 0),
	}
}

// PEM is what a client has to trust.
func (ca *CA) PEM() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: ca.certificate.Raw})
}

// Issue returns a certificate for a name or an address.
func (ca *CA) Issue(name string) (*tls.Certificate, error) {
	ca.mu.Lock()
	defer ca.mu.Unlock()
	if c, ok := ca.issued[name]; ok {
		return c, nil
	}
	wanted := template(name)
	wanted.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
	if address := net.ParseIP(name); address != nil {
		wanted.IPAddresses = []net.IP{address}
	} else {
		wanted.DNSNames = []string{name}
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	raw, err := x509.CreateCertificate(rand.Reader, wanted, ca.certificate, key.Public(), ca.key)
	if err != nil {
		return nil, fmt.Errorf("make certificate of %q: %w", name, err)
	}
	if len(ca.issued) >= maxIssued {
		clear(ca.issued)
	}
	ca.issued[name] = &tls.Certificate{Certificate: [][]byte{raw, ca.certificate.Raw}, PrivateKey: key}
	return ca.issued[name], nil
}
