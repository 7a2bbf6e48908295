// Package boltstore keeps the registrations, services, nonces and subscriptions of a Map-Server in a bbolt file.
package boltstore

import (
	"errors"
	"fmt"
	"time"

	"go.etcd.io/bbolt"
	berrors "go.etcd.io/bbolt/errors"

	"github.com/tabi-lisp/tabi/lisp"
	"github.com/tabi-lisp/tabi/mapserver"
)

// Store is an open file. It is a [mapserver.Store].
type Store struct {
	db *bbolt.DB
}

var _ mapserver.Store = (*Store)(nil)

// The buckets of the file, and the format that is written today.
var (
	bucketMeta          = []byte("meta")
	bucketRegistrations = []byte("registrations") // EID -> JSON
	bucketServices      = []byte("services")      // service address -> JSON
	bucketNonces        = []byte("nonces")        // see nonceKey -> 8 bytes, big-endian
	bucketSubscriptions = []byte("subscriptions") // xTR-ID, EID -> JSON

	keyFormat = []byte("format")
	format    = []byte("1")
)

// lockTimeout is how long Open waits for another process to let go of the file.
const lockTimeout = 2 * time.Second

// Open opens or makes the file at path. One process at a time can have it open.
func Open(path string) (*Store, error) {
	db, err := bbolt.Open(path, 0o600, &bbolt.Options{
		Timeout: lockTimeout,
		// The list of free pages is found again when the file is opened, rather than written each time.
		NoFreelistSync: true,
		FreelistType:   bbolt.FreelistMapType,
		// Growing the mapping of a file that is in use waits for its readers, and there are none to
		// wait for; but each time costs a remap of all of it.
		InitialMmapSize: 64 << 20,
	})
	switch {
	case errors.Is(err, berrors.ErrTimeout):
		return nil, fmt.Errorf("boltstore: %s is in use by another process", path)
	case err != nil:
		return nil, fmt.Errorf("boltstore: open %s: %w", path, err)
	}
	s := &Store{db: db}
	if err := db.Update(s.prepare); err != nil {
		return nil, errors.Join(fmt.Errorf("boltstore: %s: %w", path, err), db.Close())
	}
	return s, nil
}

func (s *Store) prepare(tx *bbolt.Tx) error {
	for _, name := range [][]byte{bucketMeta, bucketRegistrations, bucketServices, bucketNonces, bucketSubscriptions} {
		if _, err := tx.CreateBucketIfNotExists(name); err != nil {
			return fmt.Errorf("bucket %s: %w", name, err)
		}
	}
	meta := tx.Bucket(bucketMeta)
	switch have := meta.Get(keyFormat); {
	case have == nil:
		return meta.Put(keyFormat, format)
	case string(have) != string(format):
		return fmt.Errorf("is in format %q, this program knows %q", have, format)
	}
	return nil
}

// Close closes the file. The Store cannot be used afterwards.
func (s *Store) Close() error {
	if err := s.db.Close(); err != nil {
		return fmt.Errorf("boltstore: close: %w", err)
	}
	return nil
}

// Load reads everything.
func (s *Store) Load() (mapserver.State, error) {
	st := mapserver.State{Nonces: map[mapserver.NonceKey]uint64{}}
	err := s.db.View(func(tx *bbolt.Tx) error {
		err := tx.Bucket(bucketRegistrations).ForEach(func(k, v []byte) error {
			r, err := decodeRegistration(v)
			if err != nil {
				return fmt.Errorf("registration %q: %w", k, err)
			}
			if string(k) != r.Mapping.EID.String() {
				return fmt.Errorf("registration %q: is of %s", k, r.Mapping.EID)
			}
			st.Registrations = append(st.Registrations, r)
			return nil
		})
		if err != nil {
			return err
		}
		err = tx.Bucket(bucketServices).ForEach(func(k, v []byte) error {
			sv, err := decodeService(v)
			if err != nil {
				return fmt.Errorf("service %q: %w", k, err)
			}
			if string(k) != sv.Mapping.EID.String() {
				return fmt.Errorf("service %q: is of %s", k, sv.Mapping.EID)
			}
			st.Services = append(st.Services, sv)
			return nil
		})
		if err != nil {
			return err
		}
		err = tx.Bucket(bucketNonces).ForEach(func(k, v []byte) error {
			nk, n, err := decodeNonce(k, v)
			if err != nil {
				return fmt.Errorf("nonce %x: %w", k, err)
			}
			st.Nonces[nk] = n
			return nil
		})
		if err != nil {
			return err
		}
		return tx.Bucket(bucketSubscriptions).ForEach(func(k, v []byte) error {
			sub, err := decodeSubscription(v)
			if err != nil {
				return fmt.Errorf("subscription %x: %w", k, err)
			}
			st.Subscriptions = append(st.Subscriptions, sub)
			return nil
		})
	})
	if err != nil {
		return mapserver.State{}, fmt.Errorf("boltstore: load: %w", err)
	}
	return st, nil
}

// Save makes b durable in one transaction.
func (s *Store) Save(b mapserver.Batch) error {
	if b.Empty() {
		return nil
	}
	err := s.db.Update(func(tx *bbolt.Tx) error {
		registrations := tx.Bucket(bucketRegistrations)
		for eid, r := range b.Registrations {
			if err := put(registrations, registrationKey(eid), r == nil, func() ([]byte, error) { return encodeRegistration(r) }); err != nil {
				return fmt.Errorf("registration %s: %w", eid, err)
			}
		}
		services := tx.Bucket(bucketServices)
		for eid, sv := range b.Services {
			if err := put(services, registrationKey(eid), sv == nil, func() ([]byte, error) { return encodeService(sv) }); err != nil {
				return fmt.Errorf("service %s: %w", eid, err)
			}
		}
		nonces := tx.Bucket(bucketNonces)
		for k, n := range b.Nonces {
			if err := nonces.Put(nonceKey(k), nonceValue(n)); err != nil {
				return fmt.Errorf("nonce of xTR %s: %w", k.XTRID, err)
			}
		}
		subscriptions := tx.Bucket(bucketSubscriptions)
		for k, sub := range b.Subscriptions {
			if err := put(subscriptions, subscriptionKey(k), sub == nil, func() ([]byte, error) { return encodeSubscription(sub) }); err != nil {
				return fmt.Errorf("subscription of xTR %s to %s: %w", k.XTRID, k.EID, err)
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("boltstore: save: %w", err)
	}
	return nil
}

func put(b *bbolt.Bucket, key []byte, remove bool, encode func() ([]byte, error)) error {
	if remove {
		return b.Delete(key)
	}
	v, err := encode()
	if err != nil {
		return err
	}
	return b.Put(key, v)
}

func registrationKey(e lisp.EID) []byte { return []byte(e.String()) }

func subscriptionKey(k mapserver.SubscriptionKey) []byte {
	return append(k.XTRID[:], k.EID.String()...)
}
