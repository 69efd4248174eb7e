package main

import (
	"context"
	"fmt"
	"time"

	"go.etcd.io/etcd/clientv3/concurrency"
)

func elect(o *options) error {
	client, session, err := o.open()
	if err != nil {
		return err
	}
	defer client.Close()
	ctx := context.Background()
	election := concurrency.NewElection(session, o.name)
	rounds := 0
	for end := time.Now().Add(o.length); time.Now().Before(end); rounds++ {
		if err := election.Campaign(ctx, o.value); err != nil {
			return err
		}
		key, revision := election.Key(), election.Rev()
		say("acquired", key, revision)
		if err := election.Proclaim(ctx, fmt.Sprint(o.value, " ", revision)); err != nil {
			return err
		}
		if err := o.held(key); err != nil {
			return err
		}
		say("released", key, revision)
		if err := election.Resign(ctx); err != nil {
			return err
		}
	}
	fmt.Println("rounds", rounds)
	return session.Close()
}

func observe(o *options) error {
	client, session, err := o.open()
	if err != nil {
		return err
	}
	defer client.Close()
	for leader := range concurrency.NewElection(session, o.name).Observe(context.Background()) {
		kv := leader.Kvs[0]
		say("leader", string(kv.Key), kv.CreateRevision)
	}
	return fmt.Errorf("nobody can be observed any more")
}
