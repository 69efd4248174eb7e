package main

import (
	"context"
	"fmt"
	"time"

	"go.etcd.io/etcd/clientv3"
	"go.etcd.io/etcd/clientv3/concurrency"
)

func mutex(o *options) error {
	client, session, err := o.open()
	if err != nil {
		return err
	}
	defer client.Close()
	ctx := context.Background()
	lock := concurrency.NewMutex(session, o.name)
	rounds := 0
	for end := time.Now().Add(o.length); time.Now().Before(end); rounds++ {
		if err := lock.Lock(ctx); err != nil {
			return err
		}
		revision, err := created(ctx, client, lock.Key())
		if err != nil {
			return err
		}
		say("acquired", lock.Key(), revision)
		if err := o.held(lock.Key()); err != nil {
			return err
		}
		say("released", lock.Key(), revision)
		if err := lock.Unlock(ctx); err != nil {
			return err
		}
	}
	fmt.Println("rounds", rounds)
	return session.Close()
}

// created is the create revision of a key that is there.
func created(ctx context.Context, client *clientv3.Client, key string) (int64, error) {
	answer, err := client.Get(ctx, key)
	if err != nil {
		return 0, err
	}
	if len(answer.Kvs) == 0 {
		return 0, fmt.Errorf("%s is held, and is not there", key)
	}
	return answer.Kvs[0].CreateRevision, nil
}
