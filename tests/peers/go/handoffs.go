package main

import (
	"context"
	"fmt"
	"time"

	"go.etcd.io/etcd/clientv3"
	"go.etcd.io/etcd/clientv3/concurrency"
)

// handoffs lets contenders take a mutex in turn and do nothing with it. Each has a session of its
// own, since those who share one hold the mutex at once; and a connection of its own, unless all are
// to share one.
func handoffs(o *options) error {
	clients := make([]*clientv3.Client, o.contenders)
	sessions := make([]*concurrency.Session, o.contenders)
	for i := range clients {
		var err error
		if i > 0 && o.shared {
			clients[i] = clients[0]
			sessions[i], err = concurrency.NewSession(clients[0], concurrency.WithTTL(o.ttl))
		} else if clients[i], sessions[i], err = o.open(); err == nil {
			defer clients[i].Close()
		}
		if err != nil {
			return err
		}
	}
	type tally struct {
		rounds int
		err    error
	}
	tallies := make(chan tally)
	begun := time.Now()
	for _, session := range sessions {
		go func(session *concurrency.Session) {
			var mine tally
			lock := concurrency.NewMutex(session, o.name)
			for mine.err == nil && time.Since(begun) < o.length {
				if mine.err = lock.Lock(context.Background()); mine.err == nil {
					mine.err = lock.Unlock(context.Background())
					mine.rounds++
				}
			}
			tallies <- mine
		}(session)
	}
	sum := 0
	for range sessions {
		mine := <-tallies
		if mine.err != nil {
			return mine.err
		}
		sum += mine.rounds
	}
	took := time.Since(begun).Seconds()
	for _, session := range sessions {
		if err := session.Close(); err != nil {
			return err
		}
	}
	fmt.Printf("{\"who\":\"concurrency.Mutex\",\"contenders\":%d,\"shared\":%t,\"handoffs\":%d,\"per_second\":%.1f}\n",
		o.contenders, o.shared, sum, float64(sum)/took)
	return nil
}
