// Program peers contends for locks and elections by etcd's own client library in Go, as the other
// side of one line with tenure.
//
//	peers mutex    -endpoint H -name N ...   a closed loop on concurrency.Mutex
//	peers elect    -endpoint H -name N ...   a closed loop on concurrency.Election
//	peers observe  -endpoint H -name N       prints each leader that Election.Observe tells of
//	peers handoffs -endpoint H -name N ...   how often a mutex changes hands in a second
//
// Each change is a line on standard output: what happened, the key, its create revision, and
// nanoseconds since 1970.
package main

import (
	"flag"
	"fmt"
	"os"
	"time"

	"go.etcd.io/etcd/clientv3"
	"go.etcd.io/etcd/clientv3/concurrency"
)

type options struct {
	endpoint, name, value, referee, who string
	ttl, contenders                     int
	hold, length                        time.Duration
	shared                              bool
}

func main() {
	programs := map[string]func(*options) error{
		"mutex": mutex, "elect": elect, "observe": observe, "handoffs": handoffs,
	}
	if len(os.Args) < 2 || programs[os.Args[1]] == nil {
		fail(fmt.Errorf("one of mutex, elect, observe and handoffs comes first"))
	}
	var o options
	flags := flag.NewFlagSet(os.Args[1], flag.ExitOnError)
	flags.StringVar(&o.endpoint, "endpoint", "127.0.0.1:2379", "host and port")
	flags.StringVar(&o.name, "name", "", "the name of the mutex or election, as it is")
	flags.StringVar(&o.value, "value", "go", "what a leader says")
	flags.StringVar(&o.referee, "referee", "", "host and port of whoever is asked while it is held")
	flags.StringVar(&o.who, "who", "go", "what the referee is told")
	flags.IntVar(&o.ttl, "ttl", 60, "of the session, in seconds")
	flags.IntVar(&o.contenders, "contenders", 8, "how many hand it over")
	flags.DurationVar(&o.hold, "hold", 2*time.Millisecond, "how long it is held")
	flags.BoolVar(&o.shared, "shared", false, "whether all contenders share one connection")
	flags.DurationVar(&o.length, "length", time.Second, "for how long")
	_ = flags.Parse(os.Args[2:])
	if err := programs[os.Args[1]](&o); err != nil {
		fail(err)
	}
}

func fail(err error) {
	fmt.Fprintln(os.Stderr, "peers:", err)
	os.Exit(1)
}

// open makes a client with a session of its own.
func (o *options) open() (*clientv3.Client, *concurrency.Session, error) {
	client, err := clientv3.New(clientv3.Config{
		Endpoints:   []string{o.endpoint},
		DialTimeout: 10 * time.Second,
	})
	if err != nil {
		return nil, nil, err
	}
	session, err := concurrency.NewSession(client, concurrency.WithTTL(o.ttl))
	if err != nil {
		client.Close()
		return nil, nil, err
	}
	return client, session, nil
}

func say(what, key string, revision int64) {
	fmt.Println(what, key, revision, time.Now().UnixNano())
}
