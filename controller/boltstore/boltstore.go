// Package boltstore keeps the controller's inventory, service addresses and moves in one bbolt file: a bucket a kind, keyed
// by name, JSON values. A Save is one transaction with one fsync.
package boltstore

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	bolt "go.etcd.io/bbolt"

	"github.com/tabi-lisp/tabi/controller"
)

// format is the version of the file's layout, kept under meta/format.
const format = 1

var (
	bucketMeta        = []byte("meta")
	bucketSites       = []byte("sites")
	bucketHypervisors = []byte("hypervisors")
	bucketVMs         = []byte("vms")
	bucketMoves       = []byte("moves")
	bucketMigrations  = []byte("migrations")
	bucketLinks       = []byte("links")
	bucketServices    = []byte("services")

	keyFormat = []byte("format")
	keyNonce  = []byte("nonce")
)

// Store is a controller.Store in a bbolt file.
type Store struct{ db *bolt.DB }

// Open opens the file at path, or makes it. A file that another process has open is an error after one
// second.
func Open(path string) (*Store, error) {
	db, err := bolt.Open(path, 0o600, &bolt.Options{Timeout: time.Second, FreelistType: bolt.FreelistMapType})
	if err != nil {
		if errors.Is(err, bolt.ErrTimeout) {
			err = errors.New("another process has it open")
		}
		return nil, fmt.Errorf("boltstore: open %s: %w", path, err)
	}
	if err := db.Update(prepare); err != nil {
		db.Close()
		return nil, fmt.Errorf("boltstore: %s: %w", path, err)
	}
	return &Store{db}, nil
}

func prepare(tx *bolt.Tx) error {
	for _, name := range [][]byte{bucketMeta, bucketSites, bucketHypervisors, bucketVMs, bucketMoves, bucketMigrations, bucketLinks, bucketServices} {
		if _, err := tx.CreateBucketIfNotExists(name); err != nil {
			return err
		}
	}
	meta := tx.Bucket(bucketMeta)
	switch v := meta.Get(keyFormat); {
	case v == nil:
		return meta.Put(keyFormat, binary.BigEndian.AppendUint64(nil, format))
	case len(v) != 8:
		return errors.New("meta/format is damaged")
	case binary.BigEndian.Uint64(v) != format:
		return fmt.Errorf("the file has format %d, this program knows %d", binary.BigEndian.Uint64(v), format)
	}
	return nil
}

// Load returns everything that was saved.
func (s *Store) Load() (controller.Saved, error) {
	var out controller.Saved
	err := s.db.View(func(tx *bolt.Tx) error {
		if v := tx.Bucket(bucketMeta).Get(keyNonce); len(v) == 8 {
			out.Nonce = binary.BigEndian.Uint64(v)
		}
		return errors.Join(
			load(tx, bucketSites, &out.Sites),
			load(tx, bucketHypervisors, &out.Hypervisors),
			load(tx, bucketVMs, &out.VMs),
			load(tx, bucketMoves, &out.Moves),
			load(tx, bucketMigrations, &out.Migrations),
			load(tx, bucketLinks, &out.Links),
			load(tx, bucketServices, &out.Services))
	})
	if err != nil {
		return controller.Saved{}, fmt.Errorf("boltstore: load: %w", err)
	}
	return out, nil
}

func load[V any](tx *bolt.Tx, bucket []byte, out *[]V) error {
	return tx.Bucket(bucket).ForEach(func(k, b []byte) error {
		var v V
		if err := json.Unmarshal(b, &v); err != nil {
			return fmt.Errorf("%s %q: %w", bucket, k, err)
		}
		*out = append(*out, v)
		return nil
	})
}

// Save makes b durable in one transaction.
func (s *Store) Save(b controller.Batch) error {
	err := s.db.Update(func(tx *bolt.Tx) error {
		if b.Nonce != 0 {
			if err := tx.Bucket(bucketMeta).Put(keyNonce, binary.BigEndian.AppendUint64(nil, b.Nonce)); err != nil {
				return err
			}
		}
		return errors.Join(
			save(tx, bucketSites, b.PutSites, b.DelSites, func(v controller.Site) string { return v.Name }),
			save(tx, bucketHypervisors, b.PutHypervisors, b.DelHypervisors, func(v controller.Hypervisor) string { return v.Name }),
			save(tx, bucketVMs, b.PutVMs, b.DelVMs, func(v controller.VM) string { return v.Name }),
			save(tx, bucketMoves, b.PutMoves, b.DelMoves, func(v controller.Move) string { return v.ID }),
			save(tx, bucketMigrations, b.PutMigrations, b.DelMigrations, func(v controller.MigrationRecord) string { return v.ID }),
			save(tx, bucketLinks, b.PutLinks, nil, func(v controller.LinkMemory) string { return v.Link }),
			save(tx, bucketServices, b.PutServices, b.DelServices, func(v controller.Service) string { return v.Outside.String() }))
	})
	if err != nil {
		return fmt.Errorf("boltstore: save: %w", err)
	}
	return nil
}

func save[V any](tx *bolt.Tx, bucket []byte, put []V, del []string, name func(V) string) error {
	bk := tx.Bucket(bucket)
	for _, v := range put {
		b, err := json.Marshal(v)
		if err != nil {
			return fmt.Errorf("%s %q: %w", bucket, name(v), err)
		}
		if err := bk.Put([]byte(name(v)), b); err != nil {
			return fmt.Errorf("%s %q: %w", bucket, name(v), err)
		}
	}
	for _, k := range del {
		if err := bk.Delete([]byte(k)); err != nil {
			return fmt.Errorf("%s %q: %w", bucket, k, err)
		}
	}
	return nil
}

// Close releases the file.
func (s *Store) Close() error { return s.db.Close() }
